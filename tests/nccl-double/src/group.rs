//! `ncclGroupStart` and `ncclGroupEnd`: what lies between them is begun together, one thread's groups apart from another's.

use std::cell::RefCell;

use crate::abi::{Code, Error, IN_PROGRESS, INVALID_USAGE, SUCCESS};
use crate::communicator::Communicator;
use crate::operation::Operation;

#[derive(Default)]
struct Group {
    depth: usize,
    calls: Vec<(*mut Communicator, Operation)>,
    /// The first error of a call inside: the group then does nothing.
    error: Option<Error>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

pub fn start() {
    GROUP.with_borrow_mut(|group| group.depth += 1);
}

/// Notes a call's error, if the thread is in a group.
pub fn note(error: &Error) {
    GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.error.get_or_insert(error.clone());
        }
    });
}

/// Does an operation, now or at the end of the group.
///
/// # Safety
/// The communicator exists until the operation is done.
pub unsafe fn add(communicator: *mut Communicator, operation: Operation) -> Result<Code, Error> {
    let now = GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.calls.push((communicator, operation));
        }
        group.depth == 0
    });
    // SAFETY: as the caller promises.
    if now { unsafe { begin(vec![(communicator, operation)]) } } else { Ok(SUCCESS) }
}

/// # Safety
/// The communicators of the group's calls exist until the calls are done.
pub unsafe fn end() -> Result<Code, Error> {
    let calls = GROUP.with_borrow_mut(|group| {
        if group.depth == 0 {
            return Err(Error::new(INVALID_USAGE, "ncclGroupEnd: not in a group call."));
        }
        group.depth -= 1;
        if group.depth > 0 {
            return Ok(Vec::new());
        }
        let calls = std::mem::take(&mut group.calls);
        group.error.take().map_or(Ok(calls), Err)
    })?;
    // SAFETY: as the caller promises.
    unsafe { begin(calls) }
}

/// # Safety
/// As above.
unsafe fn begin(calls: Vec<(*mut Communicator, Operation)>) -> Result<Code, Error> {
    let mut groups: Vec<(*mut Communicator, Vec<Operation>)> = Vec::new();
    for (communicator, operation) in calls {
        match groups.iter_mut().find(|(other, _)| *other == communicator) {
            Some((_, operations)) => operations.push(operation),
            None => groups.push((communicator, vec![operation])),
        }
    }
    let communicators: Vec<*mut Communicator> =
        groups.iter().map(|(communicator, _)| *communicator).collect();
    for (communicator, operations) in groups {
        // SAFETY: as the caller promises.
        unsafe { (*communicator).submit(operations)? };
    }
    let mut code = SUCCESS;
    for communicator in communicators {
        // SAFETY: as the caller promises.
        let communicator = unsafe { &*communicator };
        code = match communicator.is_blocking {
            false => IN_PROGRESS,
            true => communicator.wait().max(code),
        };
    }
    Ok(code)
}
