//! Which GPU of the machine this process calls device 0, 1, …: the driver says, for whom `CUDA_VISIBLE_DEVICES` and the order
//! of devices hold. Numbers of the management library are others.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::Path;

use libloading::Library;

/// Longer than `0000:00:00.0`.
const BUS_ID_BYTES: usize = 32;

/// What names a GPU on its machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub uuid: Option<[u8; 16]>,
    pub pci_bus_id: Option<String>,
}

impl Identity {
    /// As the management library spells the UUID of a GPU, and that of a part of one.
    pub fn uuid_texts(&self) -> Vec<String> {
        let Some(uuid) = self.uuid else { return Vec::new() };
        let hex = |range: std::ops::Range<usize>| -> String {
            uuid[range].iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let text = [hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16)].join("-");
        ["GPU", "MIG"].map(|kind| format!("{kind}-{text}")).to_vec()
    }
}

/// Asks the driver about a device, as this process counts.
pub fn identity(driver: &Path, ordinal: usize) -> Result<Identity, String> {
    let shown = driver.display();
    // SAFETY: NVIDIA's driver, with the types of cuda.h; the library stays loaded while its functions are called, and each
    // answer has room.
    unsafe {
        let library = Library::new(driver).map_err(|error| format!("{shown}: {error}"))?;
        let function = |name: &str| format!("{shown} has no function {name}");
        let init = library
            .get::<unsafe extern "C" fn(c_uint) -> c_int>(b"cuInit\0")
            .map_err(|_| function("cuInit"))?;
        let get = library
            .get::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>(b"cuDeviceGet\0")
            .map_err(|_| function("cuDeviceGet"))?;
        let mut device: c_int = 0;
        let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        let refused = |call: &str, code: c_int| format!("{call} of {shown} returns {code}");
        match init(0) {
            0 => {}
            code => return Err(refused("cuInit", code)),
        }
        match get(&mut device, number) {
            0 => {}
            code => return Err(refused("cuDeviceGet", code)),
        }
        let found = Identity { uuid: uuid(&library, device), pci_bus_id: pci_bus_id(&library, device) };
        // It has threads and state of its own, and libtorch uses it.
        std::mem::forget(library);
        Ok(found)
    }
}

/// The second version of the function knows parts of GPUs, and is missing before CUDA 11.4.
///
/// # Safety
/// The library is NVIDIA's driver, and the device one of its own.
unsafe fn uuid(library: &Library, device: c_int) -> Option<[u8; 16]> {
    type Ask = unsafe extern "C" fn(*mut [u8; 16], c_int) -> c_int;
    // SAFETY: as the caller promises.
    unsafe {
        let ask = library
            .get::<Ask>(b"cuDeviceGetUuid_v2\0")
            .or_else(|_| library.get::<Ask>(b"cuDeviceGetUuid\0"))
            .ok()?;
        let mut uuid = [0; 16];
        (ask(&mut uuid, device) == 0).then_some(uuid)
    }
}

/// # Safety
/// As above.
unsafe fn pci_bus_id(library: &Library, device: c_int) -> Option<String> {
    type Ask = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    // SAFETY: as the caller promises; the last byte stays 0 whatever is written.
    unsafe {
        let ask = library.get::<Ask>(b"cuDeviceGetPCIBusId\0").ok()?;
        let mut text = [0 as c_char; BUS_ID_BYTES];
        let is_told = ask(text.as_mut_ptr(), BUS_ID_BYTES as c_int - 1, device) == 0;
        is_told.then(|| CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned())
    }
}
