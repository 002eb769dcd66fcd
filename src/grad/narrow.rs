//! Buffers of 16-bit numbers: sums in `reduce_dtype` on their way to other ranks.

use std::ops::Range;

use tch::Tensor;

use super::flat::Flat;
use super::home::Home;
use crate::comm::{Region, RegionMut};
use crate::precision::Format;
use crate::torch::TorchError;

/// In the memory that the sums lie in.
#[derive(Debug)]
pub enum Narrow {
    Host(Vec<u16>),
    Device(Tensor),
}

impl Default for Narrow {
    fn default() -> Self {
        Self::Host(Vec::new())
    }
}

impl Narrow {
    /// Makes room for this many elements. What was in it may be lost.
    pub fn make_room(&mut self, home: Home, elements: usize, format: Format) -> Result<(), TorchError> {
        match (&mut *self, home) {
            (Self::Host(values), Home::Host) => values.resize(elements, 0),
            (Self::Device(tensor), Home::Device(device))
                if tensor.device() == device
                    && tensor.kind() == format.kind()
                    && tensor.numel() >= elements => {}
            (_, Home::Host) => *self = Self::Host(vec![0; elements]),
            (_, Home::Device(device)) => {
                *self = Self::Device(Tensor::f_zeros([elements as i64], (format.kind(), device))?);
            }
        }
        Ok(())
    }

    /// Takes over the elements of a range, rounded.
    ///
    /// # Panics
    /// If `from` has another home than room was made for.
    pub fn round(&mut self, format: Format, range: &Range<usize>, from: &Flat) -> Result<(), TorchError> {
        match self {
            Self::Host(values) => {
                format.round(&from.as_slice()[range.clone()], &mut values[range.clone()]);
                Ok(())
            }
            Self::Device(tensor) => Ok(view(tensor, range).f_copy_(&from.view(range.clone()))?),
        }
    }

    /// Gives back the elements of a range, in fp32.
    ///
    /// # Panics
    /// As [`Narrow::round`].
    pub fn widen(&self, format: Format, range: &Range<usize>, into: &mut Flat) -> Result<(), TorchError> {
        match self {
            Self::Host(values) => {
                format.widen(&values[range.clone()], &mut into.as_mut_slice()[range.clone()]);
                Ok(())
            }
            Self::Device(tensor) => Ok(into.view(range.clone()).f_copy_(&view(tensor, range))?),
        }
    }

    /// Some elements to be sent.
    pub fn region(&self, range: &Range<usize>) -> Region<'_> {
        match self {
            Self::Host(values) => Region::of(&values[range.clone()]),
            Self::Device(tensor) => Region::on_device(tensor, range),
        }
    }

    /// Places to receive in, each behind the one before.
    pub fn regions_mut(&mut self, parts: &[Range<usize>]) -> Vec<RegionMut<'_>> {
        match self {
            Self::Host(values) => RegionMut::parts(values, parts),
            Self::Device(tensor) => RegionMut::on_device(tensor, parts),
        }
    }
}

fn view(tensor: &Tensor, range: &Range<usize>) -> Tensor {
    tensor.narrow(0, range.start as i64, range.len() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tch::Device;

    /// What travels of these numbers, and what they are when they are back, in bits. What is not a number stays none; which
    /// of its patterns it gets is the kernel's choice.
    fn there_and_back(home: Home, format: Format, values: &[f32]) -> (Vec<u8>, Vec<u32>) {
        let all = 0..values.len();
        let mut flat = Flat::zeros(home, values.len());
        flat.overwrite(all.clone(), |place| place.copy_from_slice(values)).unwrap();
        let mut narrow = Narrow::default();
        narrow.make_room(home, values.len(), format).unwrap();
        narrow.round(format, &all, &flat).unwrap();
        // SAFETY: on the CPU, and as long as it says.
        let sent = |region: Region| unsafe {
            std::slice::from_raw_parts(region.address().cast::<u8>(), region.len()).to_vec()
        };
        let sent = sent(narrow.region(&all));
        narrow.widen(format, &all, &mut flat).unwrap();
        (sent, flat.read(all).unwrap().iter().map(|value| value.to_bits()).collect())
    }

    proptest! {
        #[test]
        fn homes_have_the_same_bits(bits in prop::collection::vec(any::<u32>(), 1..300)) {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).filter(|value| !value.is_nan()).collect();
            prop_assume!(!values.is_empty());
            for format in [Format::Bf16, Format::Fp16] {
                let host = there_and_back(Home::Host, format, &values);
                prop_assert_eq!(host, there_and_back(Home::Device(Device::Cpu), format, &values));
            }
        }
    }
}
