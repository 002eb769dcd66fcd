//! `--capture step=N`: everything of one step on disk, so that the place where two runs part can be found.
//!
//! Tensors are written as soon as they are there, so that a capture needs no more memory than one gradient. Each
//! micro-batch has a file of its own, written by the rank that computed it. Of copies that several ranks hold, the first
//! rank with each distinct value writes it; of sharded tensors each rank writes its shard. So the files' content is the
//! same for any number of ranks and either strategy, unless replicas have parted, and then both values are there.

mod files;

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;

use lockstep_record::{
    CaptureGroup, CapturedMicroBatch, Digest, DigestLine, Phase, RankRange, Real, RunDir, block_digests,
    exit, tensor_digest,
};
use tch::{Kind, Tensor};

use super::digests;
use super::measure::Numbers;
use super::step::Local;
use crate::grad::flat::{self, Flat};
use crate::launch::{Failure, together};
use crate::metrics::Subject;
use crate::model::MicroBatch;
use crate::session::Session;
use files::{Report, Written, fresh_folder, publish, write_file};

/// A step that is being captured. All ranks have one.
pub struct Capture {
    step: u64,
    /// Where files go until all are there.
    partial: PathBuf,
    target: PathBuf,
    report: Report,
}

/// One kind of tensor to write: its group, and for optimizer state its kind.
struct What<'a> {
    group: CaptureGroup,
    kind: usize,
    /// Before the parameter's name, such as `exp_avg/`.
    prefix: &'a str,
}

impl Capture {
    /// Before the step: writes parameters and optimizer state. All ranks call it.
    pub fn begin(session: &Session, run: &RunDir, step: u64) -> Result<Self, Failure> {
        let (comm, partial) = (session.comm, run.captures().join(format!(".step-{step:08}.partial")));
        let folder = if comm.rank() == 0 { fresh_folder(&partial) } else { Ok(()) };
        together(comm, exit::INTERNAL, folder)?;
        let mut capture = Self { step, partial, target: run.capture(step), report: Report::default() };
        capture.state(session, CaptureGroup::ParametersBefore, CaptureGroup::OptimizerBefore)?;
        Ok(capture)
    }

    /// One of this rank's micro-batches, with the gradients of its parameters as autograd yielded them.
    pub fn micro_batch(
        &mut self,
        session: &Session,
        index: usize,
        (batch, samples, loss): (&MicroBatch, &[u64], f64),
        mut gradients: Vec<(usize, Tensor)>,
    ) -> Result<(), Failure> {
        let rank = session.comm.rank() as u32;
        let micro_batch = CapturedMicroBatch {
            rank,
            samples: samples.to_vec(),
            inputs: bytes_digest(&batch.inputs)?,
            targets: bytes_digest(&batch.targets)?,
            others: batch
                .contents()
                .into_iter()
                .skip(2)
                .map(|(name, tensor)| Ok((name.to_owned(), bytes_digest(tensor)?)))
                .collect::<Result<_, Failure>>()?,
            loss: Real(loss),
        };
        self.report.micro_batches.push((index, micro_batch));
        gradients.sort_by_key(|(parameter, _)| *parameter);
        let what = What { group: CaptureGroup::LocalGradient, kind: 0, prefix: "" };
        let name = format!("{}-{index:05}.safetensors", what.group.name());
        let mut entries = Vec::new();
        for (parameter, gradient) in &gradients {
            let elements = flat::values(gradient)?;
            let written = self::written(session, &what, *parameter, 0, &elements);
            let written = Written { micro_batch: Some(index as u32), ranks: vec![(rank, rank)], ..written };
            entries.push((written, elements));
        }
        self.write(&name, entries)
    }

    /// The step's gradient, before clipping. All ranks call it.
    pub fn gradient(&mut self, session: &Session) -> Result<(), Failure> {
        let buffer = |bucket| session.accumulator.gradient(bucket);
        let subject = self.subject(Phase::ReducedGradient, "");
        let lines = digests::of_buffers(session, &subject, &|_| None, &buffer, &|_| 0)?;
        let what = What { group: CaptureGroup::ReducedGradient, kind: 0, prefix: "" };
        self.buffers(session, &what, &lines, session.ownership.is_sharded(), &buffer, &|_| 0)
    }

    /// After the update: writes the new state, and gives the capture its name. All ranks call it.
    pub fn finish(mut self, session: &Session, local: &Local, numbers: Numbers) -> Result<(), Failure> {
        debug_assert_eq!(local.losses.len(), self.report.micro_batches.len());
        self.state(session, CaptureGroup::Parameters, CaptureGroup::Optimizer)?;
        let report =
            serde_json::to_vec(&self.report).map_err(|error| Failure::alone(exit::INTERNAL, error))?;
        let reports = session.comm.all_gather_bytes("gather of captures", &report)?;
        let published = match session.comm.rank() {
            0 => publish(session, (&self.partial, &self.target), self.step, numbers, &reports),
            _ => Ok(()),
        };
        together(session.comm, exit::INTERNAL, published)?;
        tracing::info!(step = self.step, "step captured");
        Ok(())
    }

    /// Of the digests that say who holds what.
    fn subject<'p>(&self, phase: Phase, prefix: &'p str) -> Subject<'p> {
        Subject { step: self.step, phase, prefix, sketched: false }
    }

    fn state(
        &mut self,
        session: &Session,
        parameters: CaptureGroup,
        optimizer: CaptureGroup,
    ) -> Result<(), Failure> {
        session.reducer.arrive_all()?;
        let mine = session.ownership.owned(session.comm.rank());
        for (kind, name) in session.optimizer.state_names().iter().enumerate() {
            let (state, prefix) = (session.optimizer.state(kind), format!("{name}/"));
            let buffer = |bucket: usize| &state[bucket];
            let start = |bucket: usize| mine[bucket].start;
            let subject = self.subject(Phase::Optimizer, &prefix);
            let lines = digests::of_buffers(session, &subject, &|_| None, &buffer, &start)?;
            let what = What { group: optimizer, kind, prefix: &prefix };
            self.buffers(session, &what, &lines, session.ownership.is_sharded(), &buffer, &start)?;
        }
        let buffer = |bucket: usize| &session.parameters.buffers()[bucket];
        let subject = self.subject(Phase::Parameters, "");
        let lines = digests::of_parameters(session, &subject)?;
        let what = What { group: parameters, kind: 0, prefix: "" };
        self.buffers(session, &what, &lines, false, &buffer, &|_| 0)
    }

    /// Tensors that lie in one buffer a bucket, which begins at `start(bucket)`. `lines` say who holds which value.
    fn buffers<'b>(
        &mut self,
        session: &Session,
        what: &What,
        lines: &[DigestLine],
        sharded: bool,
        buffer: &dyn Fn(usize) -> &'b Flat,
        start: &dyn Fn(usize) -> usize,
    ) -> Result<(), Failure> {
        let rank = session.comm.rank();
        let ranges: Vec<Range<usize>> = match sharded {
            true => session.ownership.owned(rank),
            false => (0..session.layout.buckets.len()).map(|bucket| 0..buffer(bucket).len()).collect(),
        };
        let mut entries = Vec::new();
        for part in session.layout.parts(&ranges) {
            let name = format!("{}{}", what.prefix, session.layout.parameters[part.parameter].name);
            let Some(ranks) = holders(lines, &name, sharded, rank as u32) else { continue };
            let first = start(part.bucket);
            let elements = buffer(part.bucket).read(part.range.start - first..part.range.end - first)?;
            let written = written(session, what, part.parameter, part.offset, &elements);
            entries
                .push((Written { ranks, sharded: sharded && session.comm.size() > 1, ..written }, elements));
        }
        let kind = what.prefix.trim_end_matches('/');
        let dash = if kind.is_empty() { "" } else { "-" };
        self.write(&format!("{}{dash}{kind}-rank-{rank:05}.safetensors", what.group.name()), entries)
    }

    /// Writes a file and notes what is in it.
    fn write(&mut self, name: &str, entries: Vec<(Written, Cow<'_, [f32]>)>) -> Result<(), Failure> {
        if entries.is_empty() {
            return Ok(());
        }
        let tensors =
            entries.iter().map(|(written, elements)| (written.piece.key.clone(), &**elements)).collect();
        let file = write_file(&self.partial, name, tensors).map_err(|error| {
            let folder = self.partial.display();
            let message =
                format!("cannot write the capture {folder}: {error}; free space, or train without --capture");
            Failure::alone(exit::INTERNAL, message)
        })?;
        self.report.files.push(file);
        for (mut written, _) in entries {
            written.piece.file = name.to_owned();
            self.report.pieces.push(written);
        }
        Ok(())
    }
}

/// The ranks that hold the value that this rank is to write; None if another one writes it.
fn holders(lines: &[DigestLine], name: &str, sharded: bool, rank: u32) -> Option<Vec<RankRange>> {
    let first = |line: &DigestLine| line.ranks.first().map(|&(first, _)| first);
    let line = lines.iter().find(|line| line.tensor == name && (sharded || first(line) == Some(rank)))?;
    Some(line.ranks.clone())
}

/// What there is to say of some elements of a parameter; the file is filled in when it is written.
fn written(session: &Session, what: &What, parameter: usize, offset: usize, elements: &[f32]) -> Written {
    let spec = &session.layout.parameters[parameter];
    let tensor = format!("{}{}", what.prefix, spec.name);
    Written {
        group: what.group,
        micro_batch: None,
        order: (what.kind, parameter),
        ranks: Vec::new(),
        sharded: false,
        shape: spec.shape.iter().map(|&size| size as u64).collect(),
        piece: lockstep_record::Piece {
            file: String::new(),
            key: format!("{tensor}@{offset}"),
            offset: offset as u64,
            length: elements.len() as u64,
        },
        blocks: block_digests(flat::bytes(elements), lockstep_record::BLOCK_BYTES),
        tensor,
    }
}

/// The digest of what a model is given, whatever its type.
fn bytes_digest(tensor: &Tensor) -> Result<Digest, Failure> {
    let tensor = tensor.f_contiguous()?;
    let bytes = match tensor.kind() {
        Kind::Float => flat::bytes(flat::elements(&tensor)).to_vec(),
        _ => {
            Vec::<i64>::try_from(tensor.f_view([-1])?)?.iter().flat_map(|value| value.to_le_bytes()).collect()
        }
    };
    Ok(tensor_digest(block_digests(&bytes, bytes.len().max(1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(tensor: &str, ranks: &[RankRange]) -> DigestLine {
        DigestLine {
            step: 1,
            phase: Phase::Parameters,
            tensor: tensor.into(),
            micro_batch: None,
            digest: Digest(0),
            norm: Real(0.0),
            sketch: None,
            ranks: ranks.to_vec(),
            sharded: false,
        }
    }

    /// Each distinct value is written once, by its first holder.
    #[test]
    fn one_rank_writes_what_several_hold() {
        let lines = [line("w", &[(0, 0), (2, 3)]), line("w", &[(1, 1)]), line("b", &[(0, 3)])];
        let writes = |name: &str, rank| holders(&lines, name, false, rank);
        assert_eq!(writes("w", 0), Some(vec![(0, 0), (2, 3)]));
        assert_eq!(writes("w", 1), Some(vec![(1, 1)]));
        assert_eq!((writes("w", 2), writes("b", 1)), (None, None));
        assert_eq!(holders(&lines, "b", true, 3), Some(vec![(0, 3)]));
    }

    #[test]
    fn token_ids_and_pixels_have_digests_of_their_bytes() {
        let digest = |tensor: &Tensor| bytes_digest(tensor).unwrap();
        let (ids, pixels) = (Tensor::from_slice(&[1i64, 2, 3, 4]), Tensor::from_slice(&[0.5f32, 1.0]));
        assert_eq!(digest(&ids), digest(&ids.view([2, 2])));
        assert_ne!(digest(&ids), digest(&Tensor::from_slice(&[1i64, 2, 3, 5])));
        assert_ne!(digest(&pixels), digest(&Tensor::from_slice(&[1.0f32, 0.5])));
    }
}
