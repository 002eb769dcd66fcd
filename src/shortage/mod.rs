//! When memory runs out: the error says what this rank needs memory for, and what to lower.
//!
//! Libraries tell how many bytes they could not have, and not what for. A rank remembers what its training needs as soon
//! as it knows, and whatever error of memory it then ends with is explained on the way out: see `launch::Failure`.

mod error;
mod holdings;

use std::sync::{Mutex, PoisonError};

use tch::Device;

use crate::metrics::resident_bytes_max;
use crate::quantity::bytes_text;
use crate::torch::gpu_memory;
use error::shortage;

pub use error::{Place, Shortage};
pub use holdings::{Holding, Needs, holdings};

/// How an error that is explained already begins.
const EXPLAINED: &str = "out of memory on the ";
/// Lines of the list.
const SHOWN_MAX: usize = 6;

/// What the training of this process needs.
static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

struct Known {
    holdings: Vec<Holding>,
    device: Device,
}

/// Notes what this process is about to need, and where it computes.
pub fn remember(holdings: Vec<Holding>, device: Device) {
    *KNOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(Known { holdings, device });
}

/// Whether this is an error of memory: a fault of the machine, whatever was being done.
pub fn is_one(error: &str) -> bool {
    shortage(error).is_some()
}

/// The error, with what is known about this rank's memory if that is what it is about.
pub fn explained(error: String) -> String {
    let Some(shortage) = shortage(&error).filter(|_| !error.contains(EXPLAINED)) else { return error };
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let (holdings, device) =
        known.as_ref().map_or((&[][..], Device::Cpu), |known| (known.holdings.as_slice(), known.device));
    let most = match (shortage.place, device) {
        (Place::Host, _) => Some(resident_bytes_max()).filter(|bytes| *bytes > 0),
        (Place::Gpu, Device::Cuda(ordinal)) => gpu_memory(ordinal).map(|memory| memory.bytes_max),
        (Place::Gpu, _) => None,
    };
    explain(&shortage, most, holdings)
}

/// What a user reads. `bytes_max` is the most that this process had.
fn explain(shortage: &Shortage, bytes_max: Option<u64>, holdings: &[Holding]) -> String {
    let said = |text: &str, bytes: Option<u64>| {
        bytes.map(|bytes| text.replace('#', &bytes_text(bytes))).unwrap_or_default()
    };
    let asked = said(": # more were asked for", shortage.asked_bytes);
    let most = said("; this rank had # at most", bytes_max);
    let mut text = format!("{EXPLAINED}{}{asked}{most}", shortage.place.name());
    let mut here: Vec<&Holding> =
        holdings.iter().filter(|holding| holding.place == shortage.place && holding.bytes > 0).collect();
    here.sort_by_key(|holding| std::cmp::Reverse(holding.bytes));
    if !here.is_empty() {
        text += ". What this training needs there, the largest first:";
    }
    for Holding { what, bytes, lower, .. } in here.into_iter().take(SHOWN_MAX) {
        text += &format!("\n  {:>10}  {what}: {lower}", bytes_text(*bytes));
    }
    text + &format!("\n  the error itself: {}", shortage.said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(place: Place, what: &str, bytes: u64) -> Holding {
        Holding { place, what: what.into(), bytes, lower: "lower it" }
    }

    #[test]
    fn the_largest_come_first_and_only_those_that_lie_there() {
        let holdings = [
            holding(Place::Host, "small", 1 << 10),
            holding(Place::Gpu, "elsewhere", 1 << 40),
            holding(Place::Host, "large", 3 << 30),
            holding(Place::Host, "nothing", 0),
        ];
        let error = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 68719476736 bytes. Error code 12\nframe #0";
        let text = explain(&shortage(error).unwrap(), Some(5 << 30), &holdings);
        assert_eq!(
            text,
            "out of memory on the host: 64 GiB more were asked for; this rank had 5 GiB at most. What this training needs \
             there, the largest first:\n       3 GiB  large: lower it\n       1 KiB  small: lower it\n  the error itself: \
             DefaultCPUAllocator: can't allocate memory: you tried to allocate 68719476736 bytes. Error code 12"
        );
        let unknown = explain(&shortage("CUDA error: out of memory").unwrap(), None, &[]);
        assert_eq!(unknown, "out of memory on the GPU\n  the error itself: CUDA error: out of memory");
    }

    #[test]
    fn an_error_is_explained_once_and_others_are_left_alone() {
        let once = explained("libtorch: std::bad_alloc".into());
        assert!(
            once.starts_with("out of memory on the host") && once.ends_with("libtorch: std::bad_alloc"),
            "{once}"
        );
        assert!(is_one(&once));
        let framed = format!("rank 3: {once}");
        assert_eq!(explained(framed.clone()), framed);
        assert_eq!(explained("disk full".into()), "disk full");
        assert!(!is_one("disk full"));
    }

    /// libtorch's own words on this machine: what no machine has, which the allocator refuses before it touches anything.
    #[test]
    fn a_tensor_larger_than_any_memory_is_an_error_of_memory() {
        let error = tch::Tensor::f_empty([1i64 << 58], (tch::Kind::Uint8, Device::Cpu)).unwrap_err();
        let found = shortage(&error.to_string()).unwrap_or_else(|| panic!("{error}"));
        assert_eq!((found.place, found.asked_bytes), (Place::Host, Some(1 << 58)));
    }
}
