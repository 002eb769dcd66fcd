//! Memory that all ranks of one host have in common: numbers that lie there need not travel.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use tempfile::NamedTempFile;

use super::check::SIGNATURE_BYTES;
use crate::partition::share;

/// Where Linux keeps files in memory. Nothing is left there: the file loses its name as soon as all ranks have opened it.
const FOLDER: &str = "/dev/shm";
/// The numbers begin on one, and are reserved in whole ones.
const PAGE: usize = 4096;
/// What a rank says when it comes to a meeting: what it takes this meeting for.
pub const NOTE_BYTES: usize = SIGNATURE_BYTES;
/// A rank's line on the board: its count of meetings, and its notes of this one and of the one before.
const LINE: usize = (8 + 2 * NOTE_BYTES).next_multiple_of(64);

/// One mapping of the same memory on each rank: a board on which every rank writes how often it has come to a meeting and
/// what for, and behind it room for fp32 numbers, zeros at first.
#[derive(Debug)]
pub struct Commons {
    memory: MmapRaw,
    rank: usize,
    size: usize,
    elements: usize,
    /// That this rank has come to.
    meetings: AtomicU64,
}

impl Commons {
    /// A file for this many ranks and numbers. It is removed when the handle is dropped, which takes nothing from those who
    /// have opened it.
    pub fn create(size: usize, elements: usize) -> io::Result<NamedTempFile> {
        let file = tempfile::Builder::new().prefix("lockstep-").tempfile_in(FOLDER)?;
        file.as_file().set_len((board_bytes(size) + 4 * elements) as u64)?;
        Ok(file)
    }

    /// Opens what the first rank has created, and makes sure of this rank's share of the memory: a page that cannot be had
    /// later would end the process.
    pub fn open(path: &Path, rank: usize, size: usize, elements: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let bytes = board_bytes(size) + 4 * elements;
        let pages = share(bytes.div_ceil(PAGE), size, rank);
        reserve(&file, pages.start * PAGE, (pages.end * PAGE).min(bytes))?;
        let memory = MmapOptions::new().len(bytes).map_raw(&file)?;
        Ok(Self { memory, rank, size, elements, meetings: AtomicU64::new(0) })
    }

    /// Where the numbers begin; the same ones on every rank. Whoever uses the pointer keeps the ranks apart by meetings.
    pub fn numbers(&self) -> *mut f32 {
        // SAFETY: the mapping is as long as the board and the numbers.
        unsafe { self.memory.as_mut_ptr().add(board_bytes(self.size)).cast() }
    }

    /// How many numbers there is room for.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// This rank comes to the next meeting. What it has written until now is seen by whoever finds it there.
    pub fn arrive(&self, note: &[u8; NOTE_BYTES]) {
        let meeting = self.meetings.load(Ordering::Relaxed) + 1;
        self.meetings.store(meeting, Ordering::Relaxed);
        // SAFETY: the others read this place before this meeting but one, which they all have left, or after the store below.
        unsafe { self.note(self.rank, meeting).write(*note) };
        self.count(self.rank).store(meeting, Ordering::Release);
    }

    /// How many ranks have come to this rank's last meeting, or have been there and left.
    pub fn present(&self) -> usize {
        let meeting = self.meetings.load(Ordering::Relaxed);
        (0..self.size).filter(|&rank| self.count(rank).load(Ordering::Acquire) >= meeting).count()
    }

    /// What all ranks have come for, once they are there.
    pub fn notes(&self) -> Vec<[u8; NOTE_BYTES]> {
        let meeting = self.meetings.load(Ordering::Relaxed);
        // SAFETY: written before the ranks came here, and not again before this one has come to the next meeting.
        (0..self.size).map(|rank| unsafe { self.note(rank, meeting).read() }).collect()
    }

    /// A rank's count of meetings.
    fn count(&self, rank: usize) -> &AtomicU64 {
        // SAFETY: within the board, aligned, and only ever used as an atomic, by all ranks.
        unsafe { &*self.memory.as_ptr().add(rank * LINE).cast() }
    }

    /// Where a rank's note of a meeting is. One may be a meeting ahead of another, so there are two.
    fn note(&self, rank: usize, meeting: u64) -> *mut [u8; NOTE_BYTES] {
        let offset = rank * LINE + 8 + (meeting % 2) as usize * NOTE_BYTES;
        // SAFETY: within the board.
        unsafe { self.memory.as_mut_ptr().add(offset).cast() }
    }
}

/// Whole pages, so that the numbers begin on one.
fn board_bytes(size: usize) -> usize {
    (size * LINE).next_multiple_of(PAGE)
}

fn reserve(file: &File, start: usize, end: usize) -> io::Result<()> {
    if start >= end {
        return Ok(());
    }
    let (start, length) = (start as libc::off_t, (end - start) as libc::off_t);
    // SAFETY: a descriptor that lives through the call.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), start, length) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The ranks' views of one memory, for tests in one process.
#[cfg(test)]
pub fn in_one_process(size: usize, elements: usize) -> Vec<Commons> {
    let file = Commons::create(size, elements).unwrap();
    (0..size).map(|rank| Commons::open(file.path(), rank, size, elements).unwrap()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_see_what_others_wrote_before_they_met() {
        const ROUNDS: usize = 300;
        let ranks = in_one_process(3, 3);
        let meet = |commons: &Commons, round: usize| {
            commons.arrive(&[(round % 256) as u8; NOTE_BYTES]);
            while commons.present() < 3 {
                std::thread::yield_now();
            }
            assert_eq!(commons.notes(), [[(round % 256) as u8; NOTE_BYTES]; 3]);
        };
        let work = |commons: Commons| {
            for round in 0..ROUNDS {
                // SAFETY: each rank writes its own number between two meetings, and reads all between the next two.
                unsafe { *commons.numbers().add(commons.rank) = (round * 10 + commons.rank) as f32 };
                meet(&commons, 2 * round);
                let seen: Vec<f32> = (0..3).map(|rank| unsafe { *commons.numbers().add(rank) }).collect();
                assert_eq!(seen, [0, 1, 2].map(|rank| (round * 10 + rank) as f32));
                meet(&commons, 2 * round + 1);
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || work(rank))).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    #[test]
    fn memory_starts_as_zeros_and_the_file_is_gone() {
        let file = Commons::create(2, 5000).unwrap();
        let path = file.path().to_owned();
        let commons = Commons::open(&path, 1, 2, 5000).unwrap();
        drop(file);
        assert!(!path.exists());
        // SAFETY: nobody else has this memory.
        let numbers = unsafe { std::slice::from_raw_parts(commons.numbers(), commons.elements()) };
        assert!(numbers.iter().all(|&number| number == 0.0));
        assert_eq!(commons.numbers() as usize % PAGE, 0);
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let file = Commons::create(1, 1).unwrap();
        let error = Commons::open(file.path(), 0, 1, 1 << 50).map(drop).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge), "{error}");
    }
}
