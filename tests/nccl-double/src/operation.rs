//! What a call to the library asks for, as messages between ranks and arithmetic on what came.

use std::ops::Range;

use crate::abi::{DataType, Error, INVALID_USAGE, Reduction};
use crate::arithmetic::{combine, divide};
use crate::mesh::Transfer;
use crate::stream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Send { to: usize },
    Receive { from: usize },
    AllReduce(Reduction),
    Reduce(Reduction, usize),
    ReduceScatter(Reduction),
    AllGather,
    Broadcast(usize),
}

/// One call. Addresses are numbers, because it is done on another thread.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub call: Call,
    pub data_type: DataType,
    /// As the call counts: what is received for reduce-scatter, what is sent for all-gather.
    pub count: usize,
    pub send: usize,
    pub receive: usize,
    pub stream: usize,
}

/// An operation's messages, and where the others' operands of a reduction lie.
#[derive(Default)]
pub struct Messages {
    pub sends: Vec<Transfer>,
    pub receives: Vec<Transfer>,
    /// By rank; empty but for reductions.
    operands: Vec<Vec<u8>>,
}

impl Operation {
    fn bytes(&self) -> usize {
        self.count * self.data_type.bytes()
    }

    /// How much is written at `receive`.
    fn received_bytes(&self, rank: usize, ranks: usize) -> usize {
        match self.call {
            Call::Send { .. } => 0,
            Call::Reduce(_, root) if root != rank => 0,
            Call::AllGather => ranks * self.bytes(),
            _ => self.bytes(),
        }
    }

    /// What is received, elsewhere than where it belongs; nothing where the stream is none and it goes there at once.
    ///
    /// # Safety
    /// The operation's memory is there.
    pub unsafe fn place_apart(&self, rank: usize, ranks: usize) -> Vec<u8> {
        match self.stream {
            stream::DEFAULT => Vec::new(),
            // SAFETY: as the caller promises.
            _ => unsafe { bytes_at(self.receive, self.received_bytes(rank, ranks)) }.to_vec(),
        }
    }

    /// Equal on both sides of a message.
    fn signature(&self) -> [u8; 8] {
        let (kind, reduction, root) = match self.call {
            Call::Send { .. } | Call::Receive { .. } => (1, 0, 0),
            Call::AllReduce(reduction) => (2, reduction as u8, 0),
            Call::Reduce(reduction, root) => (3, reduction as u8, root),
            Call::ReduceScatter(reduction) => (4, reduction as u8, 0),
            Call::AllGather => (5, 0, 0),
            Call::Broadcast(root) => (6, 0, root),
        };
        let root = (root as u32).to_le_bytes();
        [kind, reduction, 0, 0, root[0], root[1], root[2], root[3]]
    }

    pub fn messages(&self, rank: usize, ranks: usize) -> Messages {
        let (call, bytes) = (self.signature(), self.bytes());
        let transfer = |peer, address| Transfer { peer, call, address, bytes };
        let others = || (0..ranks).filter(move |&peer| peer != rank);
        let mut messages = Messages::default();
        let mut operands = |from: &mut dyn Iterator<Item = usize>| -> Vec<Transfer> {
            messages.operands = vec![Vec::new(); ranks];
            from.map(|peer| {
                messages.operands[peer] = vec![0; bytes];
                transfer(peer, messages.operands[peer].as_mut_ptr() as usize)
            })
            .collect()
        };
        match self.call {
            Call::Send { to } if to != rank => messages.sends.push(transfer(to, self.send)),
            Call::Receive { from } if from != rank => messages.receives.push(transfer(from, self.receive)),
            Call::Send { .. } | Call::Receive { .. } => {}
            Call::AllReduce(_) => {
                messages.receives = operands(&mut others());
                messages.sends = others().map(|peer| transfer(peer, self.send)).collect();
            }
            Call::Reduce(_, root) if root == rank => messages.receives = operands(&mut others()),
            Call::Reduce(_, root) => messages.sends.push(transfer(root, self.send)),
            Call::ReduceScatter(_) => {
                messages.receives = operands(&mut others());
                messages.sends = others().map(|peer| transfer(peer, self.send + peer * bytes)).collect();
            }
            Call::AllGather => {
                messages.receives =
                    others().map(|peer| transfer(peer, self.receive + peer * bytes)).collect();
                messages.sends = others().map(|peer| transfer(peer, self.send)).collect();
            }
            Call::Broadcast(root) if root == rank => {
                messages.sends = others().map(|peer| transfer(peer, self.send)).collect();
            }
            Call::Broadcast(root) => messages.receives.push(transfer(root, self.receive)),
        }
        messages
    }

    /// What is left when the messages have arrived.
    ///
    /// # Safety
    /// The operation's memory is there, and nobody else uses it.
    pub unsafe fn finish(&self, messages: &Messages, rank: usize, ranks: usize) {
        let bytes = self.bytes();
        // SAFETY: as the caller promises; `copy` takes ranges that overlap.
        let copy =
            |from: usize, to: usize| unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        match self.call {
            Call::Send { .. } | Call::Receive { .. } => {}
            Call::AllGather => copy(self.send, self.receive + rank * bytes),
            Call::Broadcast(root) if root == rank => copy(self.send, self.receive),
            Call::Broadcast(_) => {}
            Call::AllReduce(reduction) => {
                for chunk in 0..ranks {
                    let elements = chunk * self.count / ranks..(chunk + 1) * self.count / ranks;
                    // SAFETY: as the caller promises.
                    unsafe { self.reduce(reduction, messages, rank, chunk, elements, self.send) };
                }
            }
            // SAFETY: as the caller promises.
            Call::Reduce(reduction, root) if root == rank => unsafe {
                self.reduce(reduction, messages, rank, root, 0..self.count, self.send);
            },
            Call::Reduce(..) => {}
            // SAFETY: as the caller promises.
            Call::ReduceScatter(reduction) => unsafe {
                self.reduce(reduction, messages, rank, rank, 0..self.count, self.send + rank * bytes);
            },
        }
    }

    /// Adds in the order of a ring that ends at rank `last`: with more than two ranks other bits than any fixed tree.
    ///
    /// # Safety
    /// As for [`Operation::finish`]; `own` is where this rank's operand begins.
    unsafe fn reduce(
        &self,
        reduction: Reduction,
        messages: &Messages,
        rank: usize,
        last: usize,
        elements: Range<usize>,
        own: usize,
    ) {
        let ranks = messages.operands.len();
        let size = self.data_type.bytes();
        let range = elements.start * size..elements.end * size;
        // SAFETY: as the caller promises.
        let own = unsafe { bytes_at(own + range.start, range.len()) };
        let operand = |from: usize| match from == rank {
            true => own,
            false => &messages.operands[from][range.clone()],
        };
        let mut total = operand((last + 1) % ranks).to_vec();
        for step in 2..=ranks {
            combine(self.data_type, reduction, &mut total, operand((last + step) % ranks));
        }
        if reduction == Reduction::Average {
            divide(self.data_type, &mut total, ranks);
        }
        // SAFETY: as the caller promises; `own` is used no more.
        unsafe {
            let to = (self.receive + range.start) as *mut u8;
            std::ptr::copy_nonoverlapping(total.as_ptr(), to, total.len());
        }
    }
}

/// # Safety
/// The memory is there, unless there are no bytes.
unsafe fn bytes_at<'a>(address: usize, bytes: usize) -> &'a [u8] {
    match bytes {
        0 => &[],
        // SAFETY: as the caller promises.
        _ => unsafe { std::slice::from_raw_parts(address as *const u8, bytes) },
    }
}

/// Messages of a group to oneself: copied in their order.
///
/// # Safety
/// The operations' memory is there, and nobody else uses it.
pub unsafe fn copy_to_self(operations: &[Operation], rank: usize) -> Result<(), Error> {
    let sends = operations.iter().filter(|operation| operation.call == Call::Send { to: rank });
    let mut receives = operations.iter().filter(|operation| operation.call == Call::Receive { from: rank });
    let unmatched = || Error::new(INVALID_USAGE, "Trying to send to self without a matching recv");
    for send in sends {
        let receive =
            receives.next().filter(|receive| receive.bytes() >= send.bytes()).ok_or_else(unmatched)?;
        // SAFETY: as the caller promises.
        unsafe { std::ptr::copy(send.send as *const u8, receive.receive as *mut u8, send.bytes()) };
    }
    match receives.next() {
        None => Ok(()),
        Some(_) => Err(Error::new(INVALID_USAGE, "Trying to recv to self without a matching send")),
    }
}
