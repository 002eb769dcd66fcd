//! Flat fp32 buffers: one tensor a bucket, seen by libtorch as a tensor and, on the host, by the ordered sum as a slice.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::home::Home;
use super::layout::Layout;
use crate::comm::{Commons, Region, RegionMut};
use crate::torch::TorchError;

/// One contiguous fp32 tensor. The hot paths take its elements as a slice or its views as tensors, as its home has it;
/// whoever looks only now and then reads and edits, which copies from and to a device.
#[derive(Debug)]
pub struct Flat {
    tensor: Tensor,
    home: Home,
    /// Of a buffer that all ranks of the host see.
    commons: Option<Arc<Commons>>,
}

impl Default for Flat {
    /// Empty, of the host.
    fn default() -> Self {
        Self::zeros(Home::Host, 0)
    }
}

impl Flat {
    pub fn zeros(home: Home, elements: usize) -> Self {
        let tensor = Tensor::zeros([elements as i64], (Kind::Float, home.device()));
        Self { tensor, home, commons: None }
    }

    /// A part of what all ranks of the host see.
    ///
    /// # Panics
    /// If it is longer than that.
    pub fn in_common(commons: Arc<Commons>, part: Range<usize>) -> Self {
        assert!(part.start <= part.end && part.end <= commons.elements());
        // SAFETY: within the memory, which lives as long as the buffer does.
        let tensor = unsafe {
            let first = commons.numbers().add(part.start);
            Tensor::from_blob(first.cast(), &[part.len() as i64], &[1], Kind::Float, Device::Cpu)
        };
        Self { tensor, home: Home::Host, commons: Some(commons) }
    }

    pub fn home(&self) -> Home {
        self.home
    }

    pub fn len(&self) -> usize {
        self.tensor.numel()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes room for this many elements or more, in this memory. What was in it may be lost.
    pub fn make_room(&mut self, home: Home, elements: usize) -> Result<(), TorchError> {
        if self.home != home || self.len() < elements {
            let tensor = Tensor::f_zeros([elements as i64], (Kind::Float, home.device()))?;
            *self = Self { tensor, home, commons: None };
        }
        Ok(())
    }

    /// Of a buffer of the host.
    ///
    /// # Panics
    /// If it lies on a device.
    pub fn as_slice(&self) -> &[f32] {
        self.assert_host();
        // An empty tensor's pointer is null, which no slice may have.
        if self.is_empty() {
            return &[];
        }
        // SAFETY: contiguous fp32 on the CPU (made by `zeros` or `in_common`, never resized); no view of it is written
        // to while this borrow lives, since all writes go through `&mut self` or through libtorch calls between borrows;
        // other ranks write to what is in common only while this one waits for them in `Exchange`.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast(), self.len()) }
    }

    /// See [`Flat::as_slice`].
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        self.assert_host();
        if self.is_empty() {
            return &mut [];
        }
        // SAFETY: as above, and `&mut self` excludes other borrows.
        unsafe { std::slice::from_raw_parts_mut(self.tensor.data_ptr().cast(), self.len()) }
    }

    fn assert_host(&self) {
        assert!(self.home == Home::Host, "a buffer of {:?} taken for one of the host", self.home);
    }

    /// Some elements to look at, wherever they lie.
    pub fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, TorchError> {
        match self.home {
            Home::Host => Ok(Cow::Borrowed(&self.as_slice()[range])),
            Home::Device(_) => copied(&self.view(range)).map(Cow::Owned),
        }
    }

    /// Lets `work` change some elements, wherever they lie.
    pub fn edit<T>(
        &mut self,
        range: Range<usize>,
        work: impl FnOnce(&mut [f32]) -> T,
    ) -> Result<T, TorchError> {
        match self.home {
            Home::Host => Ok(work(&mut self.as_mut_slice()[range])),
            Home::Device(_) => {
                let values = copied(&self.view(range.clone()))?;
                self.through_host(range, values, work)
            }
        }
    }

    /// As [`Flat::edit`], for `work` that sets every element: what was there before is not brought to it.
    pub fn overwrite<T>(
        &mut self,
        range: Range<usize>,
        work: impl FnOnce(&mut [f32]) -> T,
    ) -> Result<T, TorchError> {
        match self.home {
            Home::Host => self.edit(range, work),
            Home::Device(_) => self.through_host(range.clone(), vec![0.0; range.len()], work),
        }
    }

    fn through_host<T>(
        &mut self,
        range: Range<usize>,
        mut values: Vec<f32>,
        work: impl FnOnce(&mut [f32]) -> T,
    ) -> Result<T, TorchError> {
        let result = work(&mut values);
        self.view(range).f_copy_(&Tensor::f_from_slice(&values)?)?;
        Ok(result)
    }

    /// Multiplies some elements. A factor of 1 leaves the bits alone.
    pub fn scale(&mut self, range: &Range<usize>, factor: f32) -> Result<(), TorchError> {
        match self.home {
            _ if factor == 1.0 => {}
            Home::Host => self.as_mut_slice()[range.clone()].iter_mut().for_each(|value| *value *= factor),
            // What comes back is another handle of the view.
            Home::Device(_) => drop(self.view(range.clone()).f_mul_scalar_(f64::from(factor))?),
        }
        Ok(())
    }

    /// Takes over as many elements from the start of another buffer of the same home.
    pub fn copy_from(&mut self, range: &Range<usize>, other: &Self) -> Result<(), TorchError> {
        match self.home {
            Home::Host => {
                self.as_mut_slice()[range.clone()].copy_from_slice(&other.as_slice()[..range.len()]);
            }
            Home::Device(_) => self.view(range.clone()).f_copy_(&other.view(0..range.len()))?,
        }
        Ok(())
    }

    /// Some elements to be sent.
    pub fn region(&self, range: &Range<usize>) -> Region<'_> {
        match self.home {
            Home::Host => Region::of(&self.as_slice()[range.clone()]),
            Home::Device(_) => Region::on_device(&self.tensor, range),
        }
    }

    /// Places to receive in, each behind the one before.
    pub fn regions_mut(&mut self, parts: &[Range<usize>]) -> Vec<RegionMut<'_>> {
        match self.home {
            Home::Host => RegionMut::parts(self.as_mut_slice(), parts),
            Home::Device(_) => RegionMut::on_device(&mut self.tensor, parts),
        }
    }

    /// One place to receive in.
    pub fn region_mut(&mut self, range: &Range<usize>) -> RegionMut<'_> {
        self.regions_mut(std::slice::from_ref(range)).remove(0)
    }

    /// A second handle of the same memory, for another thread. Whoever makes one sees to it that the memory is not
    /// used on both sides at once: [`crate::reduce::Reducer`] does.
    pub fn same_memory(&self) -> Self {
        Self { tensor: self.tensor.shallow_clone(), home: self.home, commons: self.commons.clone() }
    }

    /// A view of some elements that shares their memory.
    pub fn view(&self, range: Range<usize>) -> Tensor {
        self.tensor.narrow(0, range.start as i64, range.len() as i64)
    }
}

/// One buffer a bucket.
pub fn zeros(layout: &Layout, home: Home) -> Vec<Flat> {
    layout.buckets.iter().map(|bucket| Flat::zeros(home, bucket.elements)).collect()
}

/// The elements of a contiguous fp32 CPU tensor.
///
/// # Panics
/// If it is of another kind: gradients of fp32 parameters never are.
pub fn elements(tensor: &Tensor) -> &[f32] {
    assert!(tensor.kind() == Kind::Float && tensor.device() == Device::Cpu && tensor.is_contiguous());
    // An empty tensor's pointer is null.
    if tensor.numel() == 0 {
        return &[];
    }
    // SAFETY: just checked; the borrow keeps the tensor alive.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// The elements of a contiguous fp32 tensor, wherever it lies.
pub fn values(tensor: &Tensor) -> Result<Cow<'_, [f32]>, TorchError> {
    match tensor.device() {
        Device::Cpu => Ok(Cow::Borrowed(elements(tensor))),
        _ => copied(tensor).map(Cow::Owned),
    }
}

/// A copy on the host; done when it returns.
fn copied(tensor: &Tensor) -> Result<Vec<f32>, TorchError> {
    let mut values = vec![0.0; tensor.numel()];
    let elements = values.len();
    tensor.f_copy_data(&mut values, elements)?;
    Ok(values)
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
    use proptest::prelude::*;

    /// Over a double of NCCL buckets lie on the CPU, and are treated as those of a GPU.
    const DEVICE: Home = Home::Device(Device::Cpu);

    fn filled(home: Home, values: &[f32]) -> Flat {
        let mut flat = Flat::zeros(home, values.len());
        flat.overwrite(0..values.len(), |place| place.copy_from_slice(values)).unwrap();
        flat
    }

    fn bits(flat: &Flat) -> Vec<u32> {
        flat.read(0..flat.len()).unwrap().iter().map(|value| value.to_bits()).collect()
    }

    /// Frozen buckets and empty shards: in a debug build a slice from their null pointer would abort.
    #[test]
    fn an_empty_buffer_has_empty_slices() {
        let mut flat = Flat::zeros(Home::Host, 0);
        assert!(flat.as_slice().is_empty() && flat.as_mut_slice().is_empty());
        for home in [Home::Host, DEVICE] {
            let mut flat = Flat::zeros(home, 0);
            assert_eq!(flat.view(0..0).numel(), 0);
            assert!(flat.region(&(0..0)).is_empty() && flat.region_mut(&(0..0)).is_empty());
            assert!(flat.read(0..0).unwrap().is_empty());
        }
    }

    #[test]
    #[should_panic(expected = "taken for one of the host")]
    fn a_device_has_no_slices() {
        Flat::zeros(DEVICE, 3).as_slice();
    }

    #[test]
    fn room_is_made_where_it_is_wanted() {
        let mut flat = filled(Home::Host, &[1.0; 5]);
        flat.make_room(Home::Host, 3).unwrap();
        assert_eq!((flat.len(), flat.home()), (5, Home::Host));
        flat.make_room(DEVICE, 3).unwrap();
        assert_eq!((flat.len(), flat.home()), (3, DEVICE));
        flat.make_room(DEVICE, 9).unwrap();
        assert_eq!(flat.len(), 9);
    }

    proptest! {
        /// Whatever is done to a buffer, its home does not show.
        #[test]
        fn homes_have_the_same_bits(
            values in prop::collection::vec(-1e3f32..1e3, 1..3000), factor in -2f32..2.0, cut in any::<prop::sample::Index>(),
        ) {
            let range = cut.index(values.len())..values.len();
            let [mut host, mut device] = [Home::Host, DEVICE].map(|home| filled(home, &values));
            let other = [Home::Host, DEVICE].map(|home| filled(home, &values));
            for (flat, other) in [&mut host, &mut device].into_iter().zip(&other) {
                flat.scale(&range, factor).unwrap();
                let length = flat.edit(range.clone(), |values| { values[0] += 1.0; values.len() }).unwrap();
                prop_assert_eq!(length, range.len());
                flat.copy_from(&(0..values.len() / 2), other).unwrap();
            }
            prop_assert_eq!(bits(&host), bits(&device));
            prop_assert_eq!(host.read(range.clone()).unwrap(), device.read(range).unwrap());
        }
    }
}
