//! Flat fp32 buffers: one tensor a bucket, seen by libtorch as a tensor and by the ordered sum as a slice.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::layout::Layout;

/// One contiguous fp32 tensor on the CPU with access to its elements.
#[derive(Debug)]
pub struct Flat(Tensor);

impl Flat {
    pub fn zeros(elements: usize) -> Self {
        Self(Tensor::zeros([elements as i64], (Kind::Float, Device::Cpu)))
    }

    pub fn len(&self) -> usize {
        self.0.numel()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn as_slice(&self) -> &[f32] {
        // An empty tensor's pointer is null, which no slice may have.
        if self.is_empty() {
            return &[];
        }
        // SAFETY: contiguous fp32 on the CPU (made by `zeros`, never resized); no view of it is written to while
        // this borrow lives, since all writes go through `&mut self` or through libtorch calls between borrows.
        unsafe { std::slice::from_raw_parts(self.0.data_ptr().cast(), self.len()) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        if self.is_empty() {
            return &mut [];
        }
        // SAFETY: as above, and `&mut self` excludes other borrows.
        unsafe { std::slice::from_raw_parts_mut(self.0.data_ptr().cast(), self.len()) }
    }

    /// A second handle of the same memory, for another thread. Whoever makes one sees to it that the memory is not
    /// used on both sides at once: [`crate::reduce::Reducer`] does.
    pub fn same_memory(&self) -> Self {
        Self(self.0.shallow_clone())
    }

    /// A view of some elements that shares their memory.
    pub fn view(&self, range: Range<usize>) -> Tensor {
        self.0.narrow(0, range.start as i64, range.len() as i64)
    }
}

/// One buffer a bucket.
pub fn zeros(layout: &Layout) -> Vec<Flat> {
    layout.buckets.iter().map(|bucket| Flat::zeros(bucket.elements)).collect()
}

/// The elements of a contiguous fp32 CPU tensor.
///
/// # Panics
/// If it is of another kind: gradients of fp32 parameters never are.
pub fn elements(tensor: &Tensor) -> &[f32] {
    assert!(tensor.kind() == Kind::Float && tensor.device() == Device::Cpu && tensor.is_contiguous());
    // SAFETY: just checked; the borrow keeps the tensor alive.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// `sum[i] += other[i]`.
pub fn add(sum: &mut [f32], other: &[f32]) {
    assert_eq!(sum.len(), other.len());
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum += other;
    }
}

/// `sum[i] = left[i] + right[i]`.
pub fn sum(left: &[f32], right: &[f32], sum: &mut [f32]) {
    assert!(left.len() == sum.len() && right.len() == sum.len());
    for (sum, (left, right)) in sum.iter_mut().zip(left.iter().zip(right)) {
        *sum = left + right;
    }
}

/// What a message or a file can consist of.
///
/// # Safety
/// Every byte of such a value is initialised, and every pattern of bits is one.
pub unsafe trait Element: Copy + Default {}
// SAFETY: a plain number.
unsafe impl Element for f32 {}
// SAFETY: a plain number.
unsafe impl Element for u16 {}

/// The bytes of elements, as messages, files and digests hold them.
pub fn bytes<T: Element>(values: &[T]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "the run record is little endian") };
    // SAFETY: see [`Element`]; u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The same, to be filled.
pub fn bytes_mut<T: Element>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen buckets and empty shards: in a debug build a slice from their null pointer would abort.
    #[test]
    fn an_empty_buffer_has_empty_slices() {
        let mut flat = Flat::zeros(0);
        assert!(flat.as_slice().is_empty() && flat.as_mut_slice().is_empty());
        assert_eq!(flat.view(0..0).numel(), 0);
    }
}
