//! The order in which gradients become ready, seen in one backward pass of one sample before the first step: the
//! buckets follow it, as PyTorch's do after its first step, and nothing needs to move later.

use tch::{Device, Kind, Tensor};

use super::batch::micro_batch;
use crate::comm::Comm;
use crate::config::schema::Precision;
use crate::data::{Corpus, Split};
use crate::grad::layout::ParameterSpec;
use crate::launch::{Failure, together};
use crate::model::Model;
use crate::shortage;
use crate::torch::GradientHooks;
use lockstep_record::exit;

/// Indices of the parameters, the one whose gradient is ready first first; those without one last. Rank 0 looks, and all
/// ranks get its answer. It is also where a precision in which this machine cannot train the model is found out.
pub fn ready_order(
    comm: &dyn Comm,
    corpus: &dyn Corpus,
    model: &dyn Model,
    precision: Precision,
    specs: &[ParameterSpec],
    frozen: &[bool],
) -> Result<Vec<usize>, Failure> {
    let order = match comm.rank() {
        0 => observe(corpus, model, specs, frozen).map_err(|failure| explain(precision, failure.message)),
        _ => Ok(vec![0; specs.len()]),
    };
    let code = if precision == Precision::Fp32 { exit::INTERNAL } else { exit::USAGE };
    let order = together(comm, code, order)?;
    let mut bytes: Vec<u8> = order.iter().flat_map(|&index| (index as u64).to_le_bytes()).collect();
    comm.broadcast(0, &mut bytes)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|&bytes| u64::from_le_bytes(bytes) as usize).collect())
}

/// Why a first step cannot be made in this precision, and what to do. In another one there is no more memory.
fn explain(precision: Precision, error: String) -> String {
    if shortage::is_one(&error) {
        return error;
    }
    let others = match precision {
        Precision::Fp32 => return error,
        Precision::Bf16 => "fp32",
        Precision::Fp16 => "bf16, or fp32",
    };
    let name = precision.name();
    format!(
        "precision: {name}: libtorch cannot train this model in {name} on this processor; choose {others} ({error})"
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an operation that libtorch really lacks in half precision on a CPU.
    #[test]
    fn a_precision_that_the_processor_cannot_compute_is_named_with_another() {
        let error = Tensor::ones([2, 2], (Kind::Half, Device::Cpu)).f_linalg_cholesky(false).unwrap_err();
        let message = explain(Precision::Fp16, error.to_string());
        assert!(
            message.starts_with("precision: fp16: libtorch cannot train this model in fp16"),
            "{message}"
        );
        assert!(message.contains("choose bf16, or fp32") && message.contains("Half"), "{message}");
        assert_eq!(explain(Precision::Fp32, "as it is".into()), "as it is");
        assert_eq!(explain(Precision::Bf16, "std::bad_alloc".into()), "std::bad_alloc");
    }
}
