//! What libtorch, CUDA and the system say when there is no memory left.

/// Where memory ran out, or where something lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Host,
    Gpu,
}

impl Place {
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Gpu => "GPU",
        }
    }
}

/// What an error text tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub place: Place,
    /// What could not be had.
    pub asked_bytes: Option<u64>,
    /// The sentence that says so, without stack frames.
    pub said: String,
}

/// Of the libraries' errors, the words that mean memory and nothing else. GPUs first: their messages may quote the system's.
const MARKS: [(&str, Place); 9] = [
    ("CUDA out of memory", Place::Gpu),
    ("CUDA error: out of memory", Place::Gpu),
    ("CUBLAS_STATUS_ALLOC_FAILED", Place::Gpu),
    ("CUDNN_STATUS_ALLOC_FAILED", Place::Gpu),
    // NCCL's last words.
    ("Cuda failure 2 'out of memory'", Place::Gpu),
    ("Cuda failure 'out of memory'", Place::Gpu),
    ("DefaultCPUAllocator: ", Place::Host),
    ("std::bad_alloc", Place::Host),
    ("Cannot allocate memory", Place::Host),
];
/// More of a message than this is noise.
const SAID_CHARACTERS_MAX: usize = 600;

/// Whether an error is one of memory.
pub fn shortage(error: &str) -> Option<Shortage> {
    let (mark, place) = MARKS.into_iter().find(|(mark, _)| error.contains(mark))?;
    // Libraries put stack frames after the first line; in a panic's message the end of a line is two characters.
    let line = error.split('\n').flat_map(|line| line.split("\\n")).find(|line| line.contains(mark))?;
    let said: String = line.trim().chars().take(SAID_CHARACTERS_MAX).collect();
    Some(Shortage { place, asked_bytes: asked_bytes(line), said })
}

/// `68719476736 bytes` and `20.00 MiB` of `tried to allocate …`.
fn asked_bytes(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("ried to allocate ")?;
    let mut words = rest.split([' ', '.']).filter(|word| !word.is_empty());
    let whole = words.next()?;
    let (number, unit) = match words.next()? {
        fraction if fraction.bytes().all(|byte| byte.is_ascii_digit()) => {
            (format!("{whole}.{fraction}"), words.next()?)
        }
        unit => (whole.to_owned(), unit),
    };
    let size = match unit.trim_end_matches([',', ';']) {
        "bytes" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        _ => return None,
    };
    // Numbers with a fraction are rounded already; a double holds what any machine can have.
    number.parse::<f64>().ok().map(|number| (number * size) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(error: &str) -> Option<(Place, Option<u64>)> {
        shortage(error).map(|shortage| (shortage.place, shortage.asked_bytes))
    }

    /// As the libraries wrote them.
    #[test]
    fn errors_of_memory_are_known() {
        let cases = [
            (
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 12.75 MiB \
                 is free. Process 2131 has 79.09 GiB memory in use. Of the allocated memory 77.90 GiB is allocated by \
                 PyTorch, and 530.21 MiB is reserved by PyTorch but unallocated.",
                (Place::Gpu, Some(20 << 20)),
            ),
            (
                "CUDA out of memory. Tried to allocate 2.50 GiB (GPU 0; 15.78 GiB total capacity; 10.91 GiB already \
                 allocated; 3.17 GiB free; 11.40 GiB reserved in total by PyTorch)",
                (Place::Gpu, Some(5 << 29)),
            ),
            (
                "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
                (Place::Gpu, None),
            ),
            (
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                (Place::Gpu, None),
            ),
            ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", (Place::Gpu, None)),
            (
                "NCCL: unhandled cuda error (run with NCCL_DEBUG=INFO for details): Cuda failure 2 'out of memory'",
                (Place::Gpu, None),
            ),
            (
                "Internal torch error: [enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate \
                 memory: you tried to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)\nframe #0: \
                 c10::ThrowEnforceNotMet",
                (Place::Host, Some(64 << 30)),
            ),
            (
                "[enforce fail at alloc_cpu.cpp:75] data. DefaultCPUAllocator: not enough memory: you tried to allocate 400 \
                 bytes.",
                (Place::Host, Some(400)),
            ),
            ("libtorch: std::bad_alloc", (Place::Host, None)),
            ("a.txt: Cannot allocate memory (os error 12)", (Place::Host, None)),
        ];
        for (error, expected) in cases {
            assert_eq!(found(error), Some(expected), "{error}");
        }
    }

    /// The controls: near, and something else.
    #[test]
    fn other_errors_are_not() {
        for error in [
            "CUDA error: an illegal memory access was encountered",
            "CUDA error: device-side assert triggered",
            "The size of tensor a (4) must match the size of tensor b (5)",
            "No space left on device (os error 28)",
            "NCCL: unhandled system error",
            "",
        ] {
            assert_eq!(found(error), None, "{error}");
        }
    }

    #[test]
    fn stack_frames_are_left_out() {
        let panic = "called `Result::unwrap()` on an `Err` value: Torch(\"DefaultCPUAllocator: can't allocate memory: you tried \
                     to allocate 8 bytes.\\nframe #0: c10\")";
        let shortage = shortage(panic).unwrap();
        assert!(shortage.said.ends_with("8 bytes.") && !shortage.said.contains("frame"), "{shortage:?}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fall_over(before in ".{0,40}", after in ".{0,40}", mark in 0..MARKS.len()) {
            shortage(&before);
            let text = format!("{before}{} tried to allocate {after}", MARKS[mark].0);
            prop_assert!(shortage(&text).is_some());
        }
    }
}
