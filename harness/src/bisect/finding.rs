//! What a search found: where two runs part, in fields for programs and in one sentence for people.

use lockstep_record::RankRange;
use serde::{Deserialize, Serialize};

use super::masks::MasksApart;
use crate::compare::{Value, rank_text};

/// What happens in a step, in that order, and what lies around the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Which samples each micro-batch has, and what they look like.
    Data,
    /// Losses, the validation's too.
    Forward,
    /// One micro-batch's gradient.
    LocalGradient,
    /// The step's gradient, before clipping.
    ReducedGradient,
    /// The gradient's norm, and the clipping that follows from it.
    Norm,
    /// The learning rate.
    Schedule,
    /// Optimizer state.
    Optimizer,
    Parameters,
    /// What a checkpoint holds.
    Checkpoint,
    /// The runs ended differently: other steps, a crash, a hang.
    Outcome,
}

impl Phase {
    /// As in JSON: `reduced-gradient`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Forward => "forward",
            Self::LocalGradient => "local-gradient",
            Self::ReducedGradient => "reduced-gradient",
            Self::Norm => "norm",
            Self::Schedule => "schedule",
            Self::Optimizer => "optimizer",
            Self::Parameters => "parameters",
            Self::Checkpoint => "checkpoint",
            Self::Outcome => "outcome",
        }
    }

    /// What of it can agree.
    fn facts(self) -> &'static str {
        match self {
            Self::Data => "samples",
            Self::Forward => "losses",
            Self::LocalGradient => "local gradients",
            Self::ReducedGradient => "reduced gradients",
            Self::Norm => "norms",
            Self::Schedule => "the learning rate",
            Self::Optimizer => "optimizer state",
            Self::Parameters => "parameters",
            Self::Checkpoint => "checkpoints",
            Self::Outcome => "ends",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.name().replace('-', " "))
    }
}

/// What one run has at the place where they part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// For people: `0.25 (0x3e800000)`, a digest, sample ids, `absent`.
    pub text: String,
    /// Of a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decimal: Option<String>,
    /// Of a number, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<String>,
}

impl From<&Value> for Seen {
    fn from(value: &Value) -> Self {
        let text = value.to_string();
        let number =
            matches!(value, Value::Scalar(_)).then(|| text.trim_end_matches(')').split_once(" (")).flatten();
        let (decimal, bits) = number.map(|(decimal, bits)| (decimal.to_owned(), bits.to_owned())).unzip();
        Self { text, decimal, bits }
    }
}

/// What a finding rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// What the runs wrote down anyway: metrics, sample ids, digests, checkpoints.
    #[default]
    Records,
    /// The full tensors of a captured step.
    Capture,
}

/// Where two runs part first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// None for what holds for the whole run.
    pub step: Option<u64>,
    pub phase: Phase,
    /// A tensor, or a column of the metrics.
    pub tensor: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    /// The one rank that it concerns, if it is one: it alone holds, or owns, what differs.
    pub rank: Option<usize>,
    /// All ranks that hold a value other than the golden one, or that computed one; empty if it is all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<RankRange>,
    /// First and last differing element of the flattened tensor.
    pub elements: Option<(u64, u64)>,
    /// How many elements from the first to the last differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differing: Option<u64>,
    /// The gradient bucket that all differing elements lie in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<usize>,
    /// Tensors (or columns, or micro-batches) that differ in this phase of this step, this one included.
    pub count: u64,
    /// At the first differing element.
    pub golden: Seen,
    pub candidate: Seen,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ulps: Option<u64>,
    /// Phases of the same step that were compared before and agree.
    pub agree: Vec<Phase>,
    /// Phases of the same step that would come before and were not recorded by both runs.
    pub unknown: Vec<Phase>,
    /// The last step whose parameters were compared and agree.
    pub agreed_until: Option<u64>,
    pub evidence: Evidence,
    /// Of a loss whose micro-batch had other dropout masks: they are the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masks: Option<MasksApart>,
    /// What else speaks for a cause.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
    /// All of it for a person. [`Finding::conclude`] writes it.
    pub sentence: String,
}

impl Finding {
    pub fn new(step: Option<u64>, phase: Phase) -> Self {
        Self {
            step,
            phase,
            tensor: None,
            micro_batch: None,
            rank: None,
            ranks: Vec::new(),
            elements: None,
            differing: None,
            bucket: None,
            count: 1,
            golden: Seen::default(),
            candidate: Seen::default(),
            ulps: None,
            agree: Vec::new(),
            unknown: Vec::new(),
            agreed_until: None,
            evidence: Evidence::Records,
            masks: None,
            hints: Vec::new(),
            sentence: String::new(),
        }
    }

    /// Both values, and how far apart they are.
    pub fn with_values(mut self, golden: &Value, candidate: &Value) -> Self {
        if let (Value::Scalar(golden), Value::Scalar(candidate)) = (golden, candidate) {
            self.ulps = golden.ulps(*candidate);
        }
        (self.golden, self.candidate) = (golden.into(), candidate.into());
        self
    }

    /// Names the ranks that hold the differing value, in a world of so many.
    pub fn with_ranks(mut self, ranks: Vec<RankRange>, world: Option<u32>) -> Self {
        if world == Some(1) {
            return self;
        }
        if let [(first, last)] = ranks[..]
            && first == last
        {
            self.rank = usize::try_from(first).ok();
        }
        self.ranks = ranks;
        self
    }

    /// Writes the sentence from the other fields.
    pub fn conclude(mut self) -> Self {
        self.sentence = self.tell();
        self
    }

    fn tell(&self) -> String {
        let step = self.step.map_or_else(String::new, |step| format!("step {step}: "));
        if self.phase == Phase::Outcome {
            return format!("{step}{}{}", self.candidate.text, self.clauses());
        }
        format!(
            "{step}{} differ{}{}{}: {}",
            self.subject(),
            self.place(),
            self.values(),
            self.clauses(),
            self.advice()
        )
    }

    fn subject(&self) -> String {
        let tensor = self.tensor.as_deref().unwrap_or("the run");
        let micro_batch =
            self.micro_batch.map_or_else(String::new, |index| format!(" of micro-batch {index}"));
        match self.phase {
            Phase::Data | Phase::Forward | Phase::Norm | Phase::Schedule => format!("{tensor}{micro_batch}"),
            Phase::LocalGradient => {
                format!("the local gradient of {tensor} in micro-batch {}", self.micro_batch.unwrap_or(0))
            }
            Phase::ReducedGradient => format!("the reduced gradient of {tensor}"),
            Phase::Optimizer => format!("the optimizer state {tensor}"),
            Phase::Parameters => format!("the parameters {tensor}"),
            Phase::Checkpoint => format!("the checkpoint's {tensor}"),
            Phase::Outcome => String::new(),
        }
        .replacen("the parameters parameter_norm", "parameter_norm", 1)
    }

    /// Whether one rank holds the differing value, and the others do not. `rank` may also be the one that computed it for all.
    fn is_of_one_copy(&self) -> bool {
        self.rank.is_some() && !self.ranks.is_empty()
    }

    /// `s on rank 1 only, elements 0–1023 (12 of them) in bucket 4`: it goes on from `differ`.
    fn place(&self) -> String {
        let plural = matches!(
            self.tensor.as_deref(),
            Some("sample ids" | "inputs" | "targets" | "tokens" | "actions" | "times")
        ) || self.phase == Phase::Parameters && self.tensor.as_deref() != Some("parameter_norm");
        let mut text = if plural { String::new() } else { "s".to_owned() };
        match self.phase {
            // Who computed it, or owns it; nobody holds another value of it.
            _ if self.is_of_micro_batches() => {
                if let Some(rank) = self.rank {
                    text += &format!(", computed by rank {rank}");
                }
            }
            _ if self.is_of_one_copy() => text += &format!(" on rank {} only", rank_text(&self.ranks)),
            _ if !self.ranks.is_empty() => text += &format!(" on ranks {}", rank_text(&self.ranks)),
            _ => {}
        }
        if let Some((first, last)) = self.elements {
            text += &match self.differing {
                _ if first == last => format!(", element {first}"),
                Some(differing) if differing == last - first + 1 => format!(", elements {first}–{last}"),
                Some(differing) => format!(", elements {first}–{last} ({differing} of them)"),
                None => format!(", elements {first}–{last}"),
            };
        }
        if let Some(bucket) = self.bucket {
            text += &format!(" in bucket {bucket}");
        }
        text
    }

    fn values(&self) -> String {
        if self.golden.text.is_empty() && self.candidate.text.is_empty() {
            return String::new();
        }
        let first = if self.elements.is_some_and(|(first, last)| first != last) { "first " } else { "" };
        let ulps = match self.ulps {
            Some(1) => ", 1 ulp apart".to_owned(),
            Some(ulps) => format!(", {ulps} ulps apart"),
            None => String::new(),
        };
        format!(" ({first}golden {}, candidate {}{ulps})", self.golden.text, self.candidate.text)
    }

    /// Whether `ranks` are those that computed something, rather than holders of copies.
    fn is_of_micro_batches(&self) -> bool {
        matches!(self.phase, Phase::Data | Phase::Forward | Phase::LocalGradient)
    }

    /// What else differs, what speaks for a cause, and what agrees.
    fn clauses(&self) -> String {
        let mut clauses = Vec::new();
        if self.count > 1 {
            let others = self.count - 1;
            let whose = match (self.is_of_micro_batches(), self.rank) {
                (true, Some(rank)) => format!(", all of rank {rank}"),
                (true, None) if !self.ranks.is_empty() => format!(", of ranks {}", rank_text(&self.ranks)),
                _ => String::new(),
            };
            let verb = if others == 1 { "does" } else { "do" };
            clauses.push(format!("so {verb} {others} more of this phase{whose}"));
        }
        clauses.extend(self.masks.as_ref().map(ToString::to_string));
        clauses.extend(self.hints.iter().cloned());
        if !self.agree.is_empty() {
            let facts: Vec<_> = self.agree.iter().map(|phase| phase.facts()).collect();
            let verb = if matches!(self.agree[..], [Phase::Schedule | Phase::Optimizer]) {
                "agrees"
            } else {
                "agree"
            };
            clauses.push(format!("{} {verb}", list(&facts)));
        }
        match (self.agreed_until, self.step) {
            (Some(until), Some(step)) if until + 1 < step && self.phase != Phase::Checkpoint => {
                clauses.push(format!(
                    "the last parameters that both runs recorded before, of step {until}, agree"
                ));
            }
            _ => {}
        }
        clauses.iter().map(|clause| format!("; {clause}")).collect()
    }

    fn advice(&self) -> String {
        let bucket = self.bucket.map_or_else(String::new, |bucket| format!(" of bucket {bucket}"));
        let tensor = self.tensor.as_deref().unwrap_or_default();
        match self.phase {
            Phase::Data if matches!(tensor, "inputs" | "targets" | "actions" | "counted") => {
                "look at how these samples are loaded and changed".to_owned()
            }
            Phase::Data if matches!(tensor, "noise" | "times") => {
                "look at what the random numbers of these samples are keyed by".to_owned()
            }
            Phase::Data => "look at what hands out samples: the sampler's seed, epoch, shares and position after a resume".to_owned(),
            Phase::Forward if tensor.starts_with("validation_loss") => {
                "look at the evaluation: its samples, its scale, and whether it sees the updated parameters".to_owned()
            }
            Phase::Forward if self.masks.is_some() => {
                "look at what dropout's random numbers follow from: seed, step and micro-batch, not the rank, and nothing that a \
                 resume loses"
                    .to_owned()
            }
            Phase::Forward if tensor == "loss_scale" => {
                "look at the loss scaler: what a checkpoint keeps of it, and what it counts towards its growth".to_owned()
            }
            Phase::Forward if tensor == "loss" || tensor.starts_with("loss_terms.") => {
                "look at how the micro-batches' losses are summed".to_owned()
            }
            Phase::Forward if self.began_earlier() => {
                "look at the steps since then: parameters were not compared in between".to_owned()
            }
            Phase::Forward => {
                "look at the forward pass: what it draws at random (dropout), how the loss is scaled, its kernels".to_owned()
            }
            Phase::LocalGradient => format!("look at the backward pass where it comes to {tensor}"),
            Phase::ReducedGradient if self.unknown.contains(&Phase::LocalGradient) => {
                "look at the backward pass, the accumulation and the reduction (local gradients were not recorded: \
                 record.local_gradients tells them apart)"
                    .to_owned()
            }
            Phase::ReducedGradient => format!("look at the accumulation and the reduction{bucket}"),
            Phase::Norm if tensor == "found_inf" => {
                "look at how the ranks agree that a gradient is not finite: every shard counts for every rank".to_owned()
            }
            Phase::Norm if self.unknown.contains(&Phase::ReducedGradient) => {
                "look at the gradient first: no digests of it were recorded".to_owned()
            }
            Phase::Norm if tensor == "clip_coefficient" => "look at the clipping: limit ÷ norm, at most 1".to_owned(),
            Phase::Norm => "look at how the norm is summed over blocks, shards and ranks".to_owned(),
            Phase::Schedule => "look at which step the schedule is asked for".to_owned(),
            Phase::Optimizer => format!(
                "look at what the update of {} works on: its state, its count of steps, the clipped gradient",
                tensor.rsplit_once('/').map_or(tensor, |(_, name)| name)
            ),
            Phase::Parameters if self.step == Some(0) => "look at the initial values and their broadcast".to_owned(),
            Phase::Parameters if self.is_of_one_copy() => {
                "look at what writes to this copy, and at the gathering of updated parameters".to_owned()
            }
            Phase::Parameters => format!("look at the update{bucket} and the gathering of updated parameters"),
            Phase::Checkpoint => "look at what is saved when, and at what the pieces claim to hold".to_owned(),
            Phase::Outcome => String::new(),
        }
    }

    /// Whether steps lie between the last agreement and this one.
    pub fn began_earlier(&self) -> bool {
        self.step.is_some_and(|step| step > 1 && self.agreed_until.is_none_or(|until| until + 1 < step))
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.sentence)
    }
}

fn list(items: &[&str]) -> String {
    match items {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Format, Scalar};

    fn scalar(value: f32) -> Value {
        Value::Scalar(Scalar { format: Format::F32, bits: u64::from(value.to_bits()) })
    }

    #[test]
    fn a_reduction_is_told_in_one_sentence() {
        let mut finding = Finding::new(Some(3), Phase::ReducedGradient)
            .with_values(&scalar(0.25), &scalar(0.5))
            .with_ranks(vec![(1, 1)], Some(4));
        finding.tensor = Some("h.2.mlp.c_fc.weight".into());
        finding.elements = Some((65536, 131_071));
        finding.differing = Some(65536);
        finding.bucket = Some(4);
        finding.agree = vec![Phase::Data, Phase::Forward, Phase::LocalGradient];
        finding.agreed_until = Some(2);
        assert_eq!(
            finding.conclude().sentence,
            "step 3: the reduced gradient of h.2.mlp.c_fc.weight differs on rank 1 only, elements 65536–131071 in bucket 4 \
             (first golden 0.25 (0x3e800000), candidate 0.5 (0x3f000000), 8388608 ulps apart); samples, losses and local \
             gradients agree: look at the accumulation and the reduction of bucket 4"
        );
    }

    /// One rank computed it, and all hold it.
    #[test]
    fn an_owner_is_not_the_only_one() {
        let finding = Finding { rank: Some(1), ..Finding::new(Some(1), Phase::Parameters) }.conclude();
        assert!(!finding.sentence.contains("rank"), "{finding}");
    }

    #[test]
    fn one_rank_is_named_only_in_a_world_of_several() {
        let alone = |world| Finding::new(Some(1), Phase::Parameters).with_ranks(vec![(0, 0)], world).rank;
        assert_eq!((alone(Some(1)), alone(Some(2))), (None, Some(0)));
    }

    #[test]
    fn json_spells_phases_in_kebab_case_and_reads_back() {
        let finding =
            Finding::new(Some(2), Phase::LocalGradient).with_values(&scalar(1.0), &scalar(-0.0)).conclude();
        let text = serde_json::to_string(&finding).unwrap();
        assert!(
            text.contains(r#""phase":"local-gradient""#) && text.contains(r#""bits":"0x3f800000""#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Finding>(&text).unwrap(), finding);
        for phase in [Phase::Data, Phase::ReducedGradient, Phase::Outcome] {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
        }
    }
}
