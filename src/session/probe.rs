//! The order in which gradients become ready, seen in one backward pass of one sample before the first step: the
//! buckets follow it, as PyTorch's do after its first step, and nothing needs to move later.

use tch::{Device, Kind, Tensor};

use super::batch::micro_batch;
use crate::comm::Comm;
use crate::data::{Corpus, Split};
use crate::grad::layout::ParameterSpec;
use crate::launch::{Failure, together};
use crate::model::Model;
use crate::torch::GradientHooks;
use lockstep_record::exit;

/// Indices of the parameters, the one whose gradient is ready first first; those without one last. Rank 0 looks, and all
/// ranks get its answer.
pub fn ready_order(
    comm: &dyn Comm,
    corpus: &dyn Corpus,
    model: &dyn Model,
    specs: &[ParameterSpec],
    frozen: &[bool],
) -> Result<Vec<usize>, Failure> {
    let order = match comm.rank() {
        0 => observe(corpus, model, specs, frozen).map_err(|failure| failure.message),
        _ => Ok(vec![0; specs.len()]),
    };
    let order = together(comm, exit::INTERNAL, order)?;
    let mut bytes: Vec<u8> = order.iter().flat_map(|&index| (index as u64).to_le_bytes()).collect();
    comm.broadcast(0, &mut bytes)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|&bytes| u64::from_le_bytes(bytes) as usize).collect())
}

fn observe(
    corpus: &dyn Corpus,
    model: &dyn Model,
    specs: &[ParameterSpec],
    frozen: &[bool],
) -> Result<Vec<usize>, Failure> {
    // Values do not matter: the graph of operations decides.
    let zeros = |(spec, &frozen): (&ParameterSpec, &bool)| {
        let zeros = Tensor::f_zeros(spec.shape.as_slice(), (Kind::Float, Device::Cpu))?;
        Ok::<_, tch::TchError>(zeros.set_requires_grad(!frozen))
    };
    let leaves = specs.iter().zip(frozen).map(zeros).collect::<Result<Vec<_>, _>>()?;
    let hooks = GradientHooks::install(&leaves)?;
    let batch = micro_batch(corpus, Split::Train, &[0], Some(&[0]))?;
    let losses = model.losses(&leaves, &batch, None)?;
    let loss = Tensor::f_stack(&losses, 0)?.f_sum(Kind::Float)?;
    let mut order = Vec::new();
    hooks.backward(&loss, &mut |index, _| order.push(index))?;
    // Without a gradient here: later in the model means earlier in backward.
    let rest: Vec<usize> = (0..specs.len()).rev().filter(|index| !order.contains(index)).collect();
    Ok([order, rest].concat())
}
