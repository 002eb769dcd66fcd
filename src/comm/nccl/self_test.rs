//! `lockstep doctor --nccl-test`: whether NCCL moves and adds data rightly on these ranks, and how fast.

use std::time::Instant;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::NcclComm;
use super::abi::DataType;
use super::plane::DataPlane;
use crate::comm::check::Lengths;
use crate::comm::{Comm, CommError, Incoming, Outgoing, Region, RegionMut};

/// Elements of the operations with known answers: several vectors, and a rest.
const ELEMENTS: usize = 1003;
/// Sizes whose bandwidth is measured, in bytes.
const SIZES: [usize; 4] = [4 << 10, 256 << 10, 4 << 20, 64 << 20];
/// Largest of them for a double, whose bandwidth says nothing.
const LARGEST_OF_DOUBLE: usize = 256 << 10;
/// Each size is moved this often, after once to warm up; the fastest counts.
const REPEATS: usize = 5;

/// One operation that was tried on all ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// For example `all-reduce bf16`.
    pub operation: String,
    /// Of one rank's buffer.
    pub bytes: usize,
    /// The first rank's complaint.
    pub error: Option<String>,
    pub seconds: f64,
    /// Data that each rank's links move, by nccl-tests' convention: comparable over operations and numbers of ranks.
    pub bus_gb_per_s: f64,
}

impl Trial {
    /// One line for people.
    pub fn text(&self) -> String {
        let verdict = self.error.as_deref().map_or("ok".to_owned(), |error| format!("WRONG: {error}"));
        let Self { operation, bytes, seconds, bus_gb_per_s, .. } = self;
        format!(
            "nccl     {operation:<18} {bytes:>9} bytes {:>9.1} us {bus_gb_per_s:>7.2} GB/s  {verdict}",
            seconds * 1e6
        )
    }
}

impl NcclComm {
    /// Tries every operation; all ranks call it, after [`Comm::connect`].
    pub fn self_test(&self) -> Result<Vec<Trial>, CommError> {
        let mut trials = Vec::new();
        for (name, data_type) in
            [("f32", DataType::Float32), ("bf16", DataType::Bfloat16), ("fp16", DataType::Float16)]
        {
            trials
                .push(self.tried(&format!("all-reduce {name}"), |plane| self.all_reduce(plane, data_type))?);
        }
        trials.push(self.tried("reduce-scatter", |plane| self.reduce_scatter(plane, &|_| 64))?);
        trials.push(self.tried("uneven scatter", |plane| self.reduce_scatter(plane, &|rank| 64 + 3 * rank))?);
        trials.push(self.tried("all-gather", |plane| self.all_gather(plane))?);
        trials.push(self.tried("broadcast", |plane| self.broadcast_from_last(plane))?);
        trials.push(self.tried("send and receive", |plane| self.swap(plane))?);
        let is_double = self.nccl().is_some_and(|_| self.name() == "nccl-double");
        for size in SIZES.into_iter().filter(|&size| !is_double || size <= LARGEST_OF_DOUBLE) {
            trials.push(self.timed(size)?);
        }
        Ok(trials)
    }

    /// One operation's answer, judged on every rank.
    fn tried(
        &self,
        operation: &str,
        attempt: impl FnOnce(&DataPlane) -> Result<(usize, bool), CommError>,
    ) -> Result<Trial, CommError> {
        let started = Instant::now();
        let mut outcome = (0, true);
        self.guarded(self.mpi.control("self-test of NCCL", 0), Lengths::Equal, |plane| {
            outcome = attempt(plane)?;
            Ok(())
        })?;
        let seconds = started.elapsed().as_secs_f64();
        let (bytes, is_right) = outcome;
        let verdicts = self.all_gather_bytes("gather of verdicts", &[u8::from(is_right)])?;
        let wrong = verdicts.iter().position(|verdict| verdict != &[1]);
        let error = wrong.map(|rank| format!("rank {rank} got another result than the known one"));
        Ok(Trial { operation: operation.into(), bytes, error, seconds, bus_gb_per_s: 0.0 })
    }

    /// Element `index` of a rank: small whole numbers, whose sums are exact in every format, and none of them zero, in which
    /// a wrong bit may not show.
    fn value(rank: usize, index: usize) -> f32 {
        (1 + (3 * rank + index) % 7) as f32
    }

    fn sum(&self, index: usize) -> f32 {
        (0..self.size()).map(|rank| Self::value(rank, index)).sum()
    }

    fn all_reduce(&self, plane: &DataPlane, data_type: DataType) -> Result<(usize, bool), CommError> {
        let encode = |value: f32| match data_type {
            DataType::Float16 => f16::from_f32(value).to_bits().to_le_bytes().to_vec(),
            DataType::Bfloat16 => bf16::from_f32(value).to_bits().to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        let send: Vec<u8> = (0..ELEMENTS).flat_map(|index| encode(Self::value(self.rank(), index))).collect();
        let expected: Vec<u8> = (0..ELEMENTS).flat_map(|index| encode(self.sum(index))).collect();
        let mut received = vec![0u8; send.len()];
        plane.all_reduce(self.pace, data_type, Region::Host(&send), RegionMut::Host(&mut received))?;
        Ok((send.len(), received == expected))
    }

    /// `share` says how many elements a rank gets.
    fn reduce_scatter(
        &self,
        plane: &DataPlane,
        share: &dyn Fn(usize) -> usize,
    ) -> Result<(usize, bool), CommError> {
        let counts: Vec<usize> = (0..self.size()).map(share).collect();
        let start: usize = counts[..self.rank()].iter().sum();
        let send: Vec<f32> = (0..counts.iter().sum()).map(|index| Self::value(self.rank(), index)).collect();
        let mut received = vec![0f32; counts[self.rank()]];
        plane.reduce_scatter(self.pace, Region::of(&send), RegionMut::of(&mut received), &counts)?;
        let is_right = received.iter().enumerate().all(|(index, &value)| value == self.sum(start + index));
        Ok((4 * send.len(), is_right))
    }

    fn all_gather(&self, plane: &DataPlane) -> Result<(usize, bool), CommError> {
        let of = |rank: usize| (0..ELEMENTS).map(move |index| Self::value(rank, index));
        let send: Vec<f32> = of(self.rank()).collect();
        let mut received = vec![0f32; ELEMENTS * self.size()];
        plane.all_gather(self.pace, Region::of(&send), RegionMut::of(&mut received))?;
        Ok((4 * send.len(), received.into_iter().eq((0..self.size()).flat_map(of))))
    }

    fn broadcast_from_last(&self, plane: &DataPlane) -> Result<(usize, bool), CommError> {
        let root = self.size() - 1;
        let of = |rank: usize| (0..ELEMENTS).map(move |index| Self::value(rank, index));
        let mut values: Vec<f32> = of(self.rank()).collect();
        plane.broadcast(self.pace, root, RegionMut::of(&mut values))?;
        Ok((4 * ELEMENTS, values.into_iter().eq(of(root))))
    }

    /// Everybody to everybody, each pair another length.
    fn swap(&self, plane: &DataPlane) -> Result<(usize, bool), CommError> {
        let message = |from: usize, to: usize| -> Vec<f32> {
            (0..ELEMENTS + from + to).map(|index| Self::value(from + 2 * to, index)).collect()
        };
        let (rank, others) = (self.rank(), |rank: usize| (0..self.size()).filter(move |&peer| peer != rank));
        let letters: Vec<Vec<f32>> = others(rank).map(|to| message(rank, to)).collect();
        let mut received: Vec<Vec<f32>> =
            others(rank).map(|from| vec![0f32; ELEMENTS + from + rank]).collect();
        let sends: Vec<Outgoing> = others(rank)
            .zip(&letters)
            .map(|(to, letter)| Outgoing { to, region: Region::of(letter) })
            .collect();
        let mut recvs: Vec<Incoming> = others(rank)
            .zip(&mut received)
            .map(|(from, place)| Incoming { from, region: RegionMut::of(place) })
            .collect();
        plane.exchange("send and receive", self.pace, &sends, &mut recvs)?;
        let is_right = others(rank).zip(&received).all(|(from, values)| *values == message(from, rank));
        Ok((sends.iter().map(|send| send.region.len()).sum(), is_right))
    }

    /// How fast an all-reduce of this many bytes is.
    fn timed(&self, size: usize) -> Result<Trial, CommError> {
        let mut fastest = f64::INFINITY;
        let mut trial = self.tried("all-reduce", |plane| {
            let (send, mut received) = (vec![1f32; size / 4], vec![0f32; size / 4]);
            for repeat in 0..=REPEATS {
                let started = Instant::now();
                let place = RegionMut::of(&mut received);
                plane.all_reduce(self.pace, DataType::Float32, Region::of(&send), place)?;
                if repeat > 0 {
                    fastest = fastest.min(started.elapsed().as_secs_f64());
                }
            }
            Ok((size, received.iter().all(|&value| value == self.size() as f32)))
        })?;
        let ranks = self.size() as f64;
        trial.seconds = fastest;
        trial.bus_gb_per_s = size as f64 / fastest * 2.0 * (ranks - 1.0) / ranks / 1e9;
        Ok(trial)
    }
}
