//! Where a message comes from and goes to: the host's memory, or that of the device where buckets lie.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Range;

use tch::Tensor;

use super::CommError;
use crate::grad::flat::{Element, bytes, bytes_mut};

/// Memory of a device, as an address for NCCL. The host must not follow it. Nobody else uses the memory while this lives.
#[derive(Clone, Copy, Debug)]
pub struct OnDevice<'a> {
    address: *mut c_void,
    bytes: usize,
    tensor: PhantomData<&'a Tensor>,
}

impl<'a> OnDevice<'a> {
    /// Some elements of a tensor.
    ///
    /// # Panics
    /// If the tensor has no such elements, or they do not lie one after the other.
    fn of(tensor: &'a Tensor, elements: &Range<usize>) -> Self {
        assert!(tensor.is_contiguous() && elements.start <= elements.end && elements.end <= tensor.numel());
        let width = tensor.kind().elt_size_in_bytes();
        let address = tensor.data_ptr().cast::<u8>().wrapping_add(elements.start * width).cast();
        Self { address, bytes: elements.len() * width, tensor: PhantomData }
    }
}

/// Bytes to be sent.
#[derive(Clone, Copy, Debug)]
pub enum Region<'a> {
    Host(&'a [u8]),
    Device(OnDevice<'a>),
}

/// A place to be filled.
#[derive(Debug)]
pub enum RegionMut<'a> {
    Host(&'a mut [u8]),
    Device(OnDevice<'a>),
}

impl<'a> Region<'a> {
    /// Of the host's memory.
    pub fn of<T: Element>(values: &'a [T]) -> Self {
        Self::Host(bytes(values))
    }

    /// Some elements of a tensor that lies on a device.
    pub fn on_device(tensor: &'a Tensor, elements: &Range<usize>) -> Self {
        Self::Device(OnDevice::of(tensor, elements))
    }

    /// In bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Host(bytes) => bytes.len(),
            Self::Device(memory) => memory.bytes,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it begins, in whichever memory.
    pub fn address(&self) -> *const c_void {
        match self {
            Self::Host(bytes) => bytes.as_ptr().cast(),
            Self::Device(memory) => memory.address.cast_const(),
        }
    }

    /// For what moves the host's memory only. Of a device's it is an error: whoever chose where buckets lie was wrong.
    pub fn host(&self, operation: &'static str) -> Result<&'a [u8], CommError> {
        match self {
            Self::Host(bytes) => Ok(bytes),
            Self::Device(_) => Err(not_of_the_host(operation)),
        }
    }
}

impl<'a> RegionMut<'a> {
    /// Of the host's memory.
    pub fn of<T: Element>(values: &'a mut [T]) -> Self {
        Self::Host(bytes_mut(values))
    }

    /// Parts of the host's memory, each behind the one before.
    ///
    /// # Panics
    /// If they are not.
    pub fn parts<T: Element>(values: &'a mut [T], parts: &[Range<usize>]) -> Vec<Self> {
        let (mut rest, mut end) = (values, 0);
        let part = |range: &Range<usize>| {
            let (_, tail) = std::mem::take(&mut rest).split_at_mut(range.start - end);
            let (part, tail) = tail.split_at_mut(range.len());
            (rest, end) = (tail, range.end);
            Self::of(part)
        };
        parts.iter().map(part).collect()
    }

    /// Parts of a tensor that lies on a device, each behind the one before.
    ///
    /// # Panics
    /// If they are not.
    pub fn on_device(tensor: &'a mut Tensor, parts: &[Range<usize>]) -> Vec<Self> {
        assert!(parts.is_sorted_by(|before, after| before.end <= after.start), "parts that overlap");
        let tensor: &'a Tensor = tensor;
        parts.iter().map(|elements| Self::Device(OnDevice::of(tensor, elements))).collect()
    }

    /// In bytes.
    pub fn len(&self) -> usize {
        self.as_region().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it begins, in whichever memory.
    pub fn address(&mut self) -> *mut c_void {
        match self {
            Self::Host(bytes) => bytes.as_mut_ptr().cast(),
            Self::Device(memory) => memory.address,
        }
    }

    /// The same place for a while.
    pub fn reborrow(&mut self) -> RegionMut<'_> {
        match self {
            Self::Host(bytes) => RegionMut::Host(bytes),
            Self::Device(memory) => RegionMut::Device(*memory),
        }
    }

    /// What is in it, to be sent.
    pub fn as_region(&self) -> Region<'_> {
        match self {
            Self::Host(bytes) => Region::Host(bytes),
            Self::Device(memory) => Region::Device(*memory),
        }
    }

    /// See [`Region::host`].
    pub fn host(&mut self, operation: &'static str) -> Result<&mut [u8], CommError> {
        match self {
            Self::Host(bytes) => Ok(bytes),
            Self::Device(_) => Err(not_of_the_host(operation)),
        }
    }
}

fn not_of_the_host(operation: &'static str) -> CommError {
    let reason =
        "a bucket on a device was given to what moves the host's memory only; this is a bug".to_owned();
    CommError::Failed { operation, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn parts_lie_where_they_should() {
        let mut values = [0u16; 10];
        let start = values.as_ptr() as usize;
        let ranges = [1..3, 3..3, 5..10];
        let mut parts = RegionMut::parts(&mut values, &ranges);
        let mut tensor = Tensor::zeros([10], (Kind::Half, Device::Cpu));
        let base = tensor.data_ptr() as usize;
        let mut others = RegionMut::on_device(&mut tensor, &ranges);
        for ((part, other), range) in parts.iter_mut().zip(&mut others).zip(&ranges) {
            assert_eq!((part.len(), other.len()), (2 * range.len(), 2 * range.len()));
            assert_eq!(part.address() as usize - start, 2 * range.start);
            assert_eq!(other.address() as usize - base, 2 * range.start);
            assert_eq!(other.as_region().address(), other.address().cast_const());
            assert_eq!(part.is_empty(), range.is_empty());
        }
    }

    #[test]
    #[should_panic(expected = "parts that overlap")]
    fn parts_do_not_overlap() {
        RegionMut::on_device(&mut Tensor::zeros([4], (Kind::Float, Device::Cpu)), &[0..3, 2..4]);
    }

    #[test]
    fn a_device_is_not_the_host() {
        let mut tensor = Tensor::zeros([4], (Kind::Float, Device::Cpu));
        let error = Region::on_device(&tensor, &(1..3)).host("reduce-scatter").unwrap_err().to_string();
        assert!(error.starts_with("reduce-scatter: ") && error.contains("this is a bug"), "{error}");
        assert!(RegionMut::on_device(&mut tensor, &[0..2, 2..4])[1].host("all-gather").is_err());
        assert_eq!(Region::of(&[1u16, 2]).host("").unwrap(), [1, 0, 2, 0]);
    }
}
