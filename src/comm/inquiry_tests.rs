//! Whole worlds of watchdogs in simulated time.

use proptest::prelude::*;

use super::*;

const IDLE_TICK_MS: u64 = 500;
const BUSY_TICK_MS: u64 = 5;

#[derive(Clone, Debug)]
struct Rank {
    /// When its collective times out; never for a rank that computes.
    overdue_ms: Option<u64>,
    /// Neither sends nor receives.
    dead: bool,
    /// Offset of its ticks.
    phase_ms: u64,
}

#[derive(Debug)]
struct Report {
    rank: usize,
    at_ms: u64,
    answers: Vec<Option<Doing>>,
}

/// Runs until every rank is quiet or the first report ends the run; returns all reports of that moment.
fn simulate(ranks: &[Rank], delay_ms: u64) -> Vec<Report> {
    let mut inquiries: Vec<Inquiry> = (0..ranks.len()).map(|rank| Inquiry::new(rank, ranks.len())).collect();
    let mut inboxes: Vec<Vec<(u64, usize, Message)>> = vec![Vec::new(); ranks.len()];
    let mut next: Vec<u64> = ranks.iter().map(|rank| rank.phase_ms).collect();
    for now_ms in 0..30_000 {
        let now = Duration::from_millis(now_ms);
        let mut reports = Vec::new();
        for (rank, setting) in ranks.iter().enumerate() {
            if setting.dead || now_ms < next[rank] {
                continue;
            }
            let (due, later) =
                std::mem::take(&mut inboxes[rank]).into_iter().partition(|(at, ..)| *at <= now_ms);
            inboxes[rank] = later;
            let due: Vec<(u64, usize, Message)> = due;
            let overdue = setting.overdue_ms.is_some_and(|at| at <= now_ms);
            let inquiry = &mut inquiries[rank];
            let mut actions: Vec<Action> = due
                .into_iter()
                .filter_map(|(_, from, message)| inquiry.receive(now, from, message))
                .collect();
            actions.extend(inquiry.tick(now, overdue));
            for action in actions {
                match action {
                    Action::AskAll => {
                        let others = (0..ranks.len()).filter(|&other| other != rank);
                        others.for_each(|other| {
                            inboxes[other].push((now_ms + delay_ms, rank, Message::Question))
                        });
                    }
                    Action::Answer { to } => {
                        let doing = Doing { step: rank as u64, waits: vec![], last: None };
                        inboxes[to].push((now_ms + delay_ms, rank, Message::Answer(Some(doing))));
                    }
                    Action::Report(answers) => reports.push(Report { rank, at_ms: now_ms, answers }),
                }
            }
            next[rank] = now_ms + if inquiry.is_busy() { BUSY_TICK_MS } else { IDLE_TICK_MS };
        }
        if !reports.is_empty() {
            return reports;
        }
    }
    Vec::new()
}

fn worlds() -> impl Strategy<Value = (Vec<Rank>, u64)> {
    let rank =
        (proptest::option::weighted(0.8, 1000..3000u64), proptest::bool::weighted(0.2), 0..IDLE_TICK_MS);
    let rank = rank.prop_map(|(overdue_ms, dead, phase_ms)| Rank { overdue_ms, dead, phase_ms });
    (proptest::collection::vec(rank, 1..24), 0..100u64)
}

proptest! {
    /// Whoever is dead, late or early: one rank speaks, soon, and has everybody's answer.
    #[test]
    fn one_rank_reports_for_all((ranks, delay_ms) in worlds()) {
        let alive = |rank: &&Rank| !rank.dead && rank.overdue_ms.is_some();
        let first = ranks.iter().filter(alive).filter_map(|rank| rank.overdue_ms).min();
        let reports = simulate(&ranks, delay_ms);
        prop_assert_eq!(reports.len(), usize::from(first.is_some()), "{:?}", reports);
        for Report { rank, at_ms, answers } in reports {
            prop_assert!(!ranks[rank].dead);
            // A tick until it is noticed, the patience of a rank below 32, and the time for answers.
            let limit = first.unwrap_or(0) + IDLE_TICK_MS + 500 + ANSWERS_WITHIN.as_millis() as u64 + 100;
            prop_assert!(at_ms <= limit, "at {} ms instead of {}", at_ms, limit);
            for (other, answer) in answers.iter().enumerate() {
                prop_assert_eq!(answer.is_some(), other != rank && !ranks[other].dead, "rank {}", other);
            }
        }
    }
}

#[test]
fn the_lowest_of_those_that_time_out_together_asks() {
    let together = Rank { overdue_ms: Some(1000), dead: false, phase_ms: 0 };
    let reports = simulate(&vec![together; 16], 3);
    assert_eq!(reports.iter().map(|report| report.rank).collect::<Vec<_>>(), [0]);
}

/// A collective that ends while lower ranks may still ask was only slow.
#[test]
fn a_collective_that_ends_in_time_ends_nothing() {
    let mut late = Inquiry::new(3, 4);
    assert_eq!(late.tick(Duration::ZERO, true), None);
    assert_eq!(late.tick(ANSWERS_WITHIN, false), None);
    assert!(!late.is_busy());
}

/// The asker dies before it can end the run.
#[test]
fn a_rank_that_was_asked_does_not_wait_for_ever() {
    let mut asked = Inquiry::new(1, 2);
    let zero = Duration::ZERO;
    assert_eq!(asked.receive(zero, 0, Message::Question), Some(Action::Answer { to: 0 }));
    assert_eq!(asked.tick(ENDED_WITHIN - Duration::from_millis(1), true), None);
    assert_eq!(asked.tick(ENDED_WITHIN, true), Some(Action::Report(vec![None, None])));
}

#[test]
fn an_answer_that_cannot_be_read_is_no_answer() {
    let mut asking = Inquiry::new(0, 2);
    let asked_at = patience(0);
    assert_eq!(asking.tick(Duration::ZERO, true), None);
    assert_eq!(asking.tick(asked_at, true), Some(Action::AskAll));
    assert_eq!(asking.receive(asked_at, 1, Message::Answer(None)), None);
    assert_eq!(asking.receive(asked_at, 7, Message::Answer(None)), None);
    assert_eq!(asking.tick(asked_at, true), None);
    assert_eq!(asking.tick(asked_at + ANSWERS_WITHIN, true), Some(Action::Report(vec![None, None])));
}
