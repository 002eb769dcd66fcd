//! A residual network for small images (He et al. 2016, section 4.2) with the parameter names of torchvision's
//! ResNet.
//!
//! BatchNorm would make a sample's result depend on which others share its micro-batch, and its running means are
//! buffers that training changes outside the gradient. GroupNorm (Wu and He 2018) normalises each image by itself
//! and has no buffers, so that a model is its parameters and nothing else. As in torchvision with another
//! `norm_layer`, the norms are still named `bn1`, `bn2`.
//!
//! Images stay contiguous: on a CPU, PyTorch's channels_last pays from larger micro-batches on than the shipped
//! configurations have.

use tch::{TchError, Tensor};

use super::reader::Reader;
use super::{Dropout, Initial, MicroBatch, Model, Weights};
use crate::config::schema;
use crate::grad::layout::ParameterSpec;

/// Groups of every GroupNorm; channels are multiples of it.
const GROUPS: i64 = 8;
/// GroupNorm's term against division by zero, as in PyTorch.
const NORM_EPS: f64 = 1e-5;
/// Red, green and blue.
const COLOURS: i64 = 3;

/// A 3×3 stem, stages of basic blocks at 1, 1/2, 1/4, ... of the resolution with twice the channels each time,
/// global average pooling, and a linear head.
pub struct Resnet {
    classes: i64,
    /// In order.
    blocks: Vec<Block>,
    stem: i64,
}

/// Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes.
struct Block {
    name: String,
    from: i64,
    to: i64,
    stride: i64,
}

impl Block {
    fn has_projection(&self) -> bool {
        self.stride != 1 || self.from != self.to
    }
}

impl Resnet {
    pub fn new(model: &schema::Model, classes: usize) -> Self {
        let stem = model.width as i64;
        let mut blocks = Vec::new();
        let mut from = stem;
        for stage in 0..model.stages {
            let to = stem << stage;
            for index in 0..model.layers {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                blocks.push(Block { name: format!("layer{}.{index}", stage + 1), from, to, stride });
                from = to;
            }
        }
        Self { classes: classes as i64, blocks, stem }
    }

    /// Channels of the last stage.
    fn features(&self) -> i64 {
        self.blocks.last().map_or(self.stem, |block| block.to)
    }
}

impl Reader<'_> {
    /// Convolution without bias, then GroupNorm. The padding keeps the size at stride 1. What follows may change the
    /// result in place, as torchvision's `inplace=True` does: backward of a norm needs its input only.
    fn conv_norm(&mut self, input: &Tensor, stride: i64) -> Result<Tensor, TchError> {
        let weight = self.next()?;
        let padding = weight.size()[3] / 2;
        let x = input.f_conv2d::<&Tensor>(weight, None, [stride; 2], [padding; 2], [1; 2], 1)?;
        x.f_group_norm(GROUPS, Some(self.next()?), Some(self.next()?), NORM_EPS, false)
    }

    fn block(&mut self, block: &Block, input: Tensor) -> Result<Tensor, TchError> {
        let x = self.conv_norm(&input, block.stride)?.f_relu_()?;
        let mut x = self.conv_norm(&x, 1)?;
        let shortcut = if block.has_projection() { self.conv_norm(&input, block.stride)? } else { input };
        x.f_add_(&shortcut)?.f_relu_()
    }
}

impl Model for Resnet {
    fn parameters(&self) -> Vec<(ParameterSpec, Initial)> {
        let mut all = Vec::new();
        let mut add = |name: String, shape: Vec<i64>, initial| {
            all.push((ParameterSpec { name, shape }, initial));
        };
        // A convolution and its norm. Weights start as torchvision's: He et al. 2015, by the fan-out.
        let mut conv_norm = |conv: String, norm: String, from: i64, to: i64, kernel: i64| {
            let std = (2.0 / (to * kernel * kernel) as f64).sqrt();
            add(format!("{conv}.weight"), vec![to, from, kernel, kernel], Initial::Normal { std });
            add(format!("{norm}.weight"), vec![to], Initial::Constant(1.0));
            add(format!("{norm}.bias"), vec![to], Initial::Constant(0.0));
        };
        conv_norm("conv1".into(), "bn1".into(), COLOURS, self.stem, 3);
        for Block { name, from, to, .. } in &self.blocks {
            conv_norm(format!("{name}.conv1"), format!("{name}.bn1"), *from, *to, 3);
            conv_norm(format!("{name}.conv2"), format!("{name}.bn2"), *to, *to, 3);
            if from != to {
                conv_norm(format!("{name}.downsample.0"), format!("{name}.downsample.1"), *from, *to, 1);
            }
        }
        let features = self.features();
        let std = 1.0 / (features as f64).sqrt();
        add("fc.weight".into(), vec![self.classes, features], Initial::Normal { std });
        add("fc.bias".into(), vec![self.classes], Initial::Constant(0.0));
        all
    }

    fn losses(
        &self,
        weights: &dyn Weights,
        batch: &MicroBatch,
        dropout: Option<&Dropout>,
    ) -> Result<Vec<Tensor>, TchError> {
        let mut reader = Reader::new(weights);
        let mut x = reader.conv_norm(&batch.inputs, 1)?.f_relu_()?;
        for block in &self.blocks {
            x = reader.block(block, x)?;
        }
        let x = x.f_mean_dim([2i64, 3].as_slice(), false, None)?;
        let x = match dropout {
            Some(dropout) if dropout.probability > 0.0 => dropout.apply(0, &x)?,
            _ => x,
        };
        let logits = x.f_linear(reader.next()?, Some(reader.next()?))?;
        let loss =
            logits.f_cross_entropy_loss::<&Tensor>(&batch.targets, None, tch::Reduction::Sum, -100, 0.0)?;
        Ok(vec![loss])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn model() -> Resnet {
        let sets =
            ["model.kind=resnet", "model.layers=2", "model.stages=3", "model.width=16"].map(String::from);
        let config = crate::config::load(&[], &sets, &|_| None).unwrap().config;
        Resnet::new(&config.model, 10)
    }

    fn filled(model: &Resnet) -> Vec<Tensor> {
        tch::manual_seed(3);
        let tensor = |(spec, _): &(ParameterSpec, Initial)| {
            Tensor::randn(spec.shape.as_slice(), (Kind::Float, Device::Cpu)) * 0.1
        };
        model.parameters().iter().map(tensor).collect()
    }

    fn images(count: i64) -> MicroBatch {
        let inputs = Tensor::randn([count, 3, 32, 32], (Kind::Float, Device::Cpu));
        MicroBatch::new(inputs, Tensor::arange(count, (Kind::Int64, Device::Cpu)))
    }

    fn loss(model: &Resnet, parameters: &Vec<Tensor>, batch: &MicroBatch) -> Tensor {
        model.losses(parameters, batch, None).unwrap().remove(0)
    }

    #[test]
    fn names_and_shapes_follow_torchvision() {
        let parameters = model().parameters();
        let names: Vec<&str> = parameters.iter().map(|(spec, _)| spec.name.as_str()).collect();
        // A stem of three, six blocks of six, two projections of three, and the head.
        assert_eq!(names.len(), 3 + 6 * 6 + 2 * 3 + 2);
        assert_eq!(names[..4], ["conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight"]);
        let shape = |name: &str| &parameters[names.iter().position(|&known| known == name).unwrap()].0.shape;
        assert_eq!(shape("layer1.1.conv2.weight"), &[16, 16, 3, 3]);
        assert_eq!(shape("layer2.0.downsample.0.weight"), &[32, 16, 1, 1]);
        assert_eq!(shape("layer3.0.bn2.bias"), &[64]);
        assert_eq!(shape("fc.weight"), &[10, 64]);
        assert!(!names.contains(&"layer1.0.downsample.0.weight"));
    }

    #[test]
    fn a_uniform_guess_costs_the_logarithm_of_the_classes() {
        let model = model();
        let zeros: Vec<Tensor> = filled(&model).iter().map(Tensor::zeros_like).collect();
        let loss = loss(&model, &zeros, &images(4)).double_value(&[]);
        approx::assert_relative_eq!(loss, 4.0 * 10f64.ln(), max_relative = 1e-5);
    }

    /// What GroupNorm is for: the loss of a micro-batch is the sum of those of its images alone.
    #[test]
    fn images_do_not_see_each_other() {
        let model = model();
        let (parameters, batch) = (filled(&model), images(4));
        let part = |from: i64, count: i64| {
            let (inputs, targets) =
                (batch.inputs.narrow(0, from, count), batch.targets.narrow(0, from, count));
            loss(&model, &parameters, &MicroBatch::new(inputs, targets)).double_value(&[])
        };
        let alone: f64 = (0..4).map(|index| part(index, 1)).sum();
        approx::assert_relative_eq!(part(0, 4), alone, max_relative = 1e-5);
    }

    #[test]
    fn every_parameter_gets_a_gradient() {
        let model = model();
        let parameters: Vec<Tensor> =
            filled(&model).into_iter().map(|tensor| tensor.set_requires_grad(true)).collect();
        loss(&model, &parameters, &images(2)).backward();
        for ((spec, _), tensor) in model.parameters().iter().zip(&parameters) {
            assert!(tensor.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0, "{}", spec.name);
        }
    }
}
