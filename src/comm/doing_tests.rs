use proptest::prelude::*;

use super::*;

fn collective(bucket: u64, sequence: u64, seconds: f64) -> Collective {
    Collective {
        operation: "all-to-all".into(),
        bucket: Some(bucket),
        step: 12,
        channel: Channel::Data,
        sequence,
        seconds,
    }
}

fn waits(seconds: f64) -> Option<Doing> {
    Some(Doing { step: 12, waits: vec![collective(3, 412, seconds)], last: Some(collective(2, 411, 50.0)) })
}

#[test]
fn ranks_that_do_the_same_share_a_line_and_culprits_come_first() {
    let computing = Doing { step: 12, waits: vec![], last: Some(collective(2, 411, 42.0)) };
    let starting = Doing { step: 0, waits: vec![], last: None };
    let answers = [waits(30.04), Some(computing), waits(30.2), waits(30.1), None, Some(starting)];
    assert_eq!(
        describe(&answers),
        [
            "rank 4: no answer: stopped, dead or unreachable",
            "rank 5: computing, or at a file, before the first step (no collective yet)",
            "rank 1: computing, or at a file, in step 12 (last collective: all-to-all of bucket 2, step 12 (data 411), \
             42.0 s ago)",
            "ranks 0, 2-3: in all-to-all of bucket 3, step 12 (data 412) for 30.2 s",
        ]
    );
}

#[test]
fn both_channels_of_a_rank_are_named() {
    let mut doing = waits(9.0).unwrap();
    doing.waits.push(Collective { channel: Channel::Control, bucket: None, ..collective(0, 77, 2.0) });
    let line = &describe(&[Some(doing)])[0];
    assert_eq!(
        line,
        "rank 0: in all-to-all of bucket 3, step 12 (data 412) and all-to-all, step 12 (control 77) for 9.0 s"
    );
}

fn answers() -> impl Strategy<Value = Vec<Option<Doing>>> {
    let collective = (0u64..3, 0u64..40, 0.0..100.0f64)
        .prop_map(|(bucket, sequence, seconds)| collective(bucket, sequence, seconds));
    let doing =
        (0u64..3, proptest::collection::vec(collective.clone(), 0..3), proptest::option::of(collective))
            .prop_map(|(step, waits, last)| Doing { step, waits, last });
    proptest::collection::vec(proptest::option::of(doing), 1..200)
}

/// The ranks that a line names, unless it cuts them short.
fn ranks_of(line: &str) -> Option<Vec<usize>> {
    let list = line.split(':').next()?.trim_start_matches("ranks ").trim_start_matches("rank ");
    let mut ranks = Vec::new();
    for range in list.split(", ") {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        ranks.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(ranks)
}

proptest! {
    #[test]
    fn every_rank_is_in_one_line_of_a_short_text(answers in answers()) {
        let lines = describe(&answers);
        prop_assert!(lines.len() <= LINES_MAX);
        prop_assert!(lines.iter().all(|line| line.len() < 400 && !line.contains('\n')));
        let named: Option<Vec<Vec<usize>>> = lines.iter().map(|line| ranks_of(line)).collect();
        if let Some(named) = named {
            let mut ranks = named.concat();
            ranks.sort_unstable();
            prop_assert_eq!(ranks, (0..answers.len()).collect::<Vec<_>>());
        }
        // Who gives no answer is never among the groups that were left out.
        prop_assert_eq!(lines[0].contains("no answer"), answers.contains(&None));
    }

    #[test]
    fn an_answer_survives_the_wire(answers in answers()) {
        for doing in answers.iter().flatten() {
            let text = serde_json::to_vec(doing).unwrap();
            // It must fit the buffer that the asker receives into.
            prop_assert!(text.len() <= crate::comm::inquiry::ANSWER_BYTES_MAX);
            prop_assert_eq!(&serde_json::from_slice::<Doing>(&text).unwrap(), doing);
        }
    }
}
