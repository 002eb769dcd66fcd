//! NVIDIA's own library, where there is one, and files that are none.

use super::*;

#[test]
fn versions_as_people_write_them() {
    assert_eq!([22907, 21805, 2708].map(version_text), ["2.29.7", "2.18.5", "2.7.8"]);
}

/// The real thing, as far as it goes without a GPU: version, unique ids, error strings.
#[test]
fn the_real_nccl_answers_without_a_gpu() {
    let Some(path) = candidates().into_iter().find(|path| Library::open(path).is_ok()) else {
        eprintln!(
            "skipped: there is no {NAME} on this machine, neither in the linker's folders nor beside libtorch"
        );
        return;
    };
    let library = Library::open(&path).unwrap();
    assert!(library.version >= OLDEST && library.version < 30_000, "{}", library.version);
    assert_eq!(library.check(), Ok(()));
    assert!(library.double.is_none());
    assert!(library.explain(Code(6)).contains("remote process exited"), "{}", library.explain(Code(6)));
    assert!(library.explain(Code::IN_PROGRESS).contains("in progress"));
    match (library.unique_id(), library.unique_id()) {
        (Ok(one), Ok(other)) => assert!(one.0 != other.0, "two ids are the same"),
        (Err(error), _) | (_, Err(error)) => assert!(error.contains("NCCL: "), "{error}"),
    }
}

#[test]
fn what_is_no_nccl_is_refused() {
    let missing = Library::open(Path::new("/no/such/libnccl.so.2")).err().unwrap();
    assert!(missing.contains("/no/such/libnccl.so.2"), "{missing}");
    // A library, but another one.
    let other = loaded("libc.so").into_iter().next().expect("the C library");
    let error = Library::open(&other).err().unwrap();
    assert!(error.contains("it has no function ncclGetVersion"), "{error}");
}

#[test]
fn remedies_for_what_nccl_says_most_often() {
    assert!(remedy("Bootstrap : no socket interface found").unwrap().contains("NCCL_SOCKET_IFNAME"));
    assert!(remedy("Cuda failure 'CUDA driver version is insufficient for CUDA runtime version'").is_some());
    assert_eq!(remedy("something new"), None);
}
