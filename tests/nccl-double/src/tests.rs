//! Ranks as threads of this process: what NCCL's documentation promises.

use super::*;
use crate::abi::{INVALID_USAGE, REMOTE_ERROR};

const FLOAT: c_int = DataType::Float32 as c_int;
const SUM: c_int = Reduction::Sum as c_int;

/// A communicator that another thread may use.
#[derive(Clone, Copy)]
struct Handle(Comm);
// SAFETY: one thread at a time uses it.
unsafe impl Send for Handle {}

/// Runs `body` as every rank of a world; each has a communicator, blocking or not.
fn world<T: Send>(ranks: usize, blocking: bool, body: impl Fn(usize, Handle) -> T + Sync) -> Vec<T> {
    let mut id = UniqueId { internal: [0; 128] };
    // SAFETY: a place for the answer.
    assert_eq!(unsafe { ncclGetUniqueId(&mut id) }, SUCCESS);
    let rank = |rank: usize| {
        let config = Config {
            size: size_of::<Config>(),
            magic: CONFIG_MAGIC,
            version: VERSION as u32,
            blocking: blocking.into(),
        };
        let mut comm = std::ptr::null_mut();
        // SAFETY: valid arguments.
        let code = unsafe { ncclCommInitRankConfig(&mut comm, ranks as c_int, id, rank as c_int, &config) };
        assert_eq!(code, if blocking { SUCCESS } else { IN_PROGRESS });
        settled(Handle(comm));
        body(rank, Handle(comm))
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks).map(|number| scope.spawn(move || rank(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The state, once nothing is in progress.
fn settled(Handle(comm): Handle) -> Code {
    loop {
        let mut state = 0;
        // SAFETY: the communicator lives.
        assert_eq!(unsafe { ncclCommGetAsyncError(comm, &mut state) }, SUCCESS);
        if state != IN_PROGRESS {
            return state;
        }
        std::thread::yield_now();
    }
}

fn destroy(Handle(comm): Handle) {
    // SAFETY: used no more.
    unsafe {
        ncclCommFinalize(comm);
        settled(Handle(comm));
        assert_eq!(ncclCommDestroy(comm), SUCCESS);
    }
}

/// `ncclAllReduce` in place.
fn all_reduce(Handle(comm): Handle, values: &mut [f32]) -> Code {
    let (place, stream) = (values.as_mut_ptr().cast(), std::ptr::null_mut());
    // SAFETY: the callers wait for the end.
    unsafe { ncclAllReduce(place, place, values.len(), FLOAT, SUM, comm, stream) }
}

#[test]
fn collectives_have_known_answers() {
    world(3, true, |rank, handle| {
        let (comm, none) = (handle.0, std::ptr::null_mut());
        let mut sums: Vec<f32> = (0..7).map(|index| (rank * 10 + index) as f32).collect();
        assert_eq!(all_reduce(handle, &mut sums), SUCCESS);
        assert_eq!(sums, (0..7).map(|index| (30 + 3 * index) as f32).collect::<Vec<_>>());
        let send: Vec<f32> = (0..6).map(|index| (rank + index) as f32).collect();
        let mut shard = [0f32; 2];
        let mut gathered = [0f32; 6];
        let mut root = [rank as f32; 2];
        // SAFETY: a blocking communicator.
        unsafe {
            let (from, to) = (send.as_ptr().cast(), shard.as_mut_ptr().cast());
            assert_eq!(ncclReduceScatter(from, to, 2, FLOAT, SUM, comm, none), SUCCESS);
            let (from, to) = (shard.as_ptr().cast(), gathered.as_mut_ptr().cast());
            assert_eq!(ncclAllGather(from, to, 2, FLOAT, comm, none), SUCCESS);
            let place = root.as_mut_ptr().cast();
            assert_eq!(ncclBroadcast(place, place, 2, FLOAT, 2, comm, none), SUCCESS);
        }
        assert_eq!(gathered, [3.0, 6.0, 9.0, 12.0, 15.0, 18.0]);
        assert_eq!(shard, gathered[2 * rank..2 * rank + 2]);
        assert_eq!(root, [2.0; 2]);
        destroy(handle);
    });
}

/// Everybody sends to everybody, itself included, in one group: large enough to fill the sockets.
#[test]
fn a_group_of_messages_cannot_block_itself() {
    const ELEMENTS: usize = 300_000;
    world(3, false, |rank, handle| {
        let (comm, none) = (handle.0, std::ptr::null_mut());
        let send: Vec<Vec<f32>> = (0..3).map(|to| vec![(10 * rank + to) as f32; ELEMENTS]).collect();
        let mut received = vec![vec![0f32; ELEMENTS]; 3];
        // SAFETY: waited for below.
        unsafe {
            ncclGroupStart();
            for peer in 0..3 {
                let from = send[peer].as_ptr().cast();
                assert_eq!(ncclSend(from, ELEMENTS, FLOAT, peer as c_int, comm, none), SUCCESS);
                let to = received[peer].as_mut_ptr().cast();
                assert_eq!(ncclRecv(to, ELEMENTS, FLOAT, peer as c_int, comm, none), SUCCESS);
            }
            assert_eq!(ncclGroupEnd(), IN_PROGRESS);
        }
        assert_eq!(settled(handle), SUCCESS);
        for (from, values) in received.iter().enumerate() {
            assert!(values.iter().all(|&value| value == (10 * from + rank) as f32));
        }
        destroy(handle);
    });
}

#[test]
fn arguments_are_checked() {
    world(1, false, |_, handle| {
        let none = std::ptr::null_mut();
        let mut value = [1f32];
        let place: *mut c_void = value.as_mut_ptr().cast();
        // SAFETY: refused before anything is read.
        unsafe {
            assert_eq!(ncclAllReduce(place, place, 1, 99, SUM, handle.0, none), INVALID_ARGUMENT);
            assert_eq!(ncclAllReduce(place, place, 1, FLOAT, 99, handle.0, none), INVALID_ARGUMENT);
            assert_eq!(ncclSend(place, 1, FLOAT, 1, handle.0, none), INVALID_ARGUMENT);
            assert_eq!(
                ncclAllReduce(place, place, 1, FLOAT, SUM, std::ptr::null_mut(), none),
                INVALID_ARGUMENT
            );
            assert_eq!(ncclGroupEnd(), INVALID_USAGE);
            // An error inside a group ends the group, which then does nothing.
            ncclGroupStart();
            ncclBroadcast(place, place, 1, FLOAT, 5, handle.0, none);
            assert_eq!(ncclGroupEnd(), INVALID_ARGUMENT);
        }
        assert_eq!(settled(handle), SUCCESS);
        destroy(handle);
    });
}

/// A message that is longer than its place is an error on the receiver.
#[test]
fn a_message_that_does_not_fit_is_an_error() {
    let codes = world(2, false, |rank, handle| {
        let mut values = [0f32; 4];
        let (place, none) = (values.as_mut_ptr().cast(), std::ptr::null_mut());
        // SAFETY: waited for or aborted below.
        let code = unsafe {
            match rank {
                0 => ncclSend(place, 4, FLOAT, 1, handle.0, none),
                _ => ncclRecv(place, 3, FLOAT, 0, handle.0, none),
            };
            settled(handle)
        };
        unsafe { ncclCommAbort(handle.0) };
        code
    });
    assert_eq!(codes[1], INVALID_USAGE);
}

/// Different collectives wait for ever, and an abort ends that; whoever then talks to the rank is told.
#[test]
fn calls_that_do_not_match_wait_until_they_are_aborted() {
    let codes = world(2, false, |rank, handle| {
        let mut values = [0f32; 4];
        let (place, none): (*mut c_void, _) = (values.as_mut_ptr().cast(), std::ptr::null_mut());
        // SAFETY: aborted below.
        unsafe {
            match rank {
                0 => ncclAllReduce(place, place, 4, FLOAT, SUM, handle.0, none),
                _ => ncclBroadcast(place, place, 4, FLOAT, 0, handle.0, none),
            };
            std::thread::sleep(std::time::Duration::from_millis(100));
            let mut state = SUCCESS;
            ncclCommGetAsyncError(handle.0, &mut state);
            // Not before the previous one is done.
            let early = ncclAllReduce(place, place, 4, FLOAT, SUM, handle.0, none);
            assert_eq!(early, INVALID_ARGUMENT);
            if rank == 1 {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            ncclCommAbort(handle.0);
            state
        }
    });
    assert_eq!(codes[0], IN_PROGRESS);
    assert!([IN_PROGRESS, REMOTE_ERROR].contains(&codes[1]));
}

#[test]
fn a_rank_that_leaves_is_noticed() {
    let codes = world(2, false, |rank, handle| {
        if rank == 1 {
            // SAFETY: used no more.
            unsafe { ncclCommAbort(handle.0) };
            return REMOTE_ERROR;
        }
        let mut values = [0f32; 4];
        all_reduce(handle, &mut values);
        let code = settled(handle);
        // SAFETY: used no more.
        unsafe { ncclCommAbort(handle.0) };
        code
    });
    assert_eq!(codes, [REMOTE_ERROR; 2]);
}

/// Every kind of operation, on a stream: the communicator is done with it, and the memory is as before until the stream is
/// asked; then the results are those of the default stream.
#[test]
fn on_a_stream_results_are_there_when_it_was_waited_for() {
    world(3, false, |rank, handle| {
        let (comm, stream) = (handle.0, ncclDoubleStreamCreate());
        let wait = || {
            assert_eq!(settled(handle), SUCCESS);
            // SAFETY: the memory below lives.
            unsafe { ncclDoubleStreamQuery(stream) == 1 }
        };
        let mut sum = [rank as f32 + 1.0; 2];
        let mut gathered = [9f32; 3];
        let mut root = [rank as f32];
        let next = (rank + 1) % 3;
        let (letter, mut received) = ([rank as f32], [9f32]);
        // SAFETY: each is waited for.
        unsafe {
            let place = sum.as_mut_ptr().cast();
            ncclAllReduce(place, place, 2, FLOAT, SUM, comm, stream);
            assert_eq!(settled(handle), SUCCESS);
            assert_eq!(sum, [rank as f32 + 1.0; 2], "before it was waited for");
            assert!(wait());
            assert_eq!(sum, [6.0; 2]);
            let (from, to) = (sum.as_ptr().cast(), gathered.as_mut_ptr().cast());
            ncclAllGather(from, to, 1, FLOAT, comm, stream);
            assert!(wait());
            assert_eq!(gathered, [6.0; 3]);
            let place = root.as_mut_ptr().cast();
            ncclBroadcast(place, place, 1, FLOAT, 2, comm, stream);
            assert!(wait());
            assert_eq!(root, [2.0]);
            ncclGroupStart();
            ncclSend(letter.as_ptr().cast(), 1, FLOAT, next as c_int, comm, stream);
            ncclRecv(received.as_mut_ptr().cast(), 1, FLOAT, ((rank + 2) % 3) as c_int, comm, stream);
            ncclGroupEnd();
            assert_eq!(settled(handle), SUCCESS);
            assert_eq!(received, [9.0], "before it was waited for");
            assert!(wait());
            assert_eq!(received, [((rank + 2) % 3) as f32]);
        }
        destroy(handle);
    });
}
