//! A model whose operations run in 16 bits where that is safe.

use tch::{TchError, Tensor};

use super::Format;
use crate::grad::layout::ParameterSpec;
use crate::model::{Dropout, Initial, MicroBatch, Model, Term, Weights};
use crate::mutate::{Mutation, active};
use crate::torch;

/// The model under `torch.autocast(device, dtype)`: matrix products, convolutions and attention take and return 16 bits, losses
/// are fp32, and the rest has the type of what it is given, or the wider one of two. The lists are libtorch's own. Backward
/// takes the types that forward had, and the parameters' gradients arrive in fp32.
pub struct Autocast {
    model: Box<dyn Model>,
    format: Format,
}

impl Autocast {
    pub fn new(model: Box<dyn Model>, format: Format) -> Self {
        Self { model, format }
    }
}

impl Model for Autocast {
    fn parameters(&self) -> Vec<(ParameterSpec, Initial)> {
        self.model.parameters()
    }

    fn terms(&self) -> Vec<Term> {
        self.model.terms()
    }

    fn losses(
        &self,
        weights: &dyn Weights,
        batch: &MicroBatch,
        dropout: Option<&Dropout>,
    ) -> Result<Vec<Tensor>, TchError> {
        let keep_casts = active(Mutation::StaleCasts);
        let _autocast = torch::Autocast::enter(self.format.kind(), batch.inputs.device(), keep_casts)?;
        self.model.losses(weights, batch, dropout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// Products, a norm, an activation and a loss: an operation of each list.
    struct Small;

    impl Model for Small {
        fn parameters(&self) -> Vec<(ParameterSpec, Initial)> {
            vec![(ParameterSpec { name: "w".into(), shape: vec![8, 8] }, Initial::Constant(0.5))]
        }

        fn losses(
            &self,
            weights: &dyn Weights,
            batch: &MicroBatch,
            _: Option<&Dropout>,
        ) -> Result<Vec<Tensor>, TchError> {
            let weight = weights.get(0)?;
            let hidden = batch.inputs.f_matmul(weight)?;
            let logits = hidden.f_relu()?.f_add(&batch.inputs)?.f_matmul(weight)?;
            let loss = logits.f_cross_entropy_loss::<&Tensor>(
                &batch.targets,
                None,
                tch::Reduction::Sum,
                -100,
                0.0,
            )?;
            Ok(vec![loss])
        }
    }

    fn loss(model: &dyn Model, weight: &Tensor, batch: &MicroBatch) -> Result<Tensor, TchError> {
        let mut losses = model.losses(&vec![weight.shallow_clone()], batch, None)?;
        Ok(losses.remove(0))
    }

    fn batch() -> MicroBatch {
        tch::manual_seed(1);
        let inputs = Tensor::randn([4, 8], (Kind::Float, Device::Cpu));
        MicroBatch::new(inputs, Tensor::from_slice(&[0i64, 3, 5, 7]))
    }

    fn weight() -> Tensor {
        tch::manual_seed(2);
        (Tensor::randn([8, 8], (Kind::Float, Device::Cpu)) * 0.3).set_requires_grad(true)
    }

    /// The same with each conversion written out.
    fn by_hand(kind: Kind, weight: &Tensor, batch: &MicroBatch) -> Tensor {
        let (x, w) = (batch.inputs.to_kind(kind), weight.to_kind(kind));
        let sum = x.matmul(&w).relu() + &batch.inputs;
        let logits = sum.to_kind(kind).matmul(&w);
        assert_eq!((sum.kind(), logits.kind()), (Kind::Float, kind));
        let logits = logits.to_kind(Kind::Float);
        logits.cross_entropy_loss::<&Tensor>(&batch.targets, None, tch::Reduction::Sum, -100, 0.0)
    }

    #[test]
    fn it_converts_what_autocast_lists_and_nothing_else() {
        for format in [Format::Bf16, Format::Fp16] {
            let (batch, ours) = (batch(), weight());
            // Not drawn once more: libtorch's generator is shared by all tests that run.
            let theirs = ours.detach().copy().set_requires_grad(true);
            let model = Autocast::new(Box::new(Small), format);
            let loss = self::loss(&model, &ours, &batch).unwrap();
            let expected = by_hand(format.kind(), &theirs, &batch);
            assert_eq!(
                (loss.kind(), loss.double_value(&[])),
                (Kind::Float, expected.double_value(&[])),
                "{format:?}"
            );
            loss.backward();
            expected.backward();
            assert_eq!(ours.grad().kind(), Kind::Float);
            assert!(ours.grad().equal(&theirs.grad()), "{format:?}");
            let exact = self::loss(&Small, &ours, &batch).unwrap();
            assert_ne!(
                exact.double_value(&[]),
                loss.double_value(&[]),
                "the control: fp32 is another number"
            );
        }
    }

    /// It ends with the forward pass, whether that succeeds or not, and casts of weights do not outlive it.
    #[test]
    fn it_leaves_nothing_behind() {
        let (batch, weight) = (batch(), weight());
        let model = Autocast::new(Box::new(Small), Format::Bf16);
        let value = |weight: &Tensor| loss(&model, weight, &batch).map(|loss| loss.double_value(&[]));
        let first = value(&weight).unwrap();
        assert!(value(&Tensor::zeros([3, 3], (Kind::Float, Device::Cpu))).is_err());
        assert_eq!(batch.inputs.matmul(&weight).kind(), Kind::Float);
        tch::no_grad(|| weight.shallow_clone().copy_(&(&weight * 2.0)));
        assert_ne!(value(&weight).unwrap(), first);
    }
}
