use super::*;
use lockstep_record::{COMMUNICATION_THREAD, SpanArgs};
use proptest::prelude::*;

fn span(step: u64, category: Category, bucket: Option<u32>, start: u32, length: u32) -> Span {
    let thread = if category == Category::Communication { COMMUNICATION_THREAD } else { TRAINING_THREAD };
    Span {
        name: format!("{} {bucket:?}", category.name()),
        category,
        start_us: start.into(),
        duration_us: length.into(),
        rank: 0,
        thread,
        args: SpanArgs { step, bucket, ..SpanArgs::default() },
    }
}

fn times(spans: &[Span]) -> Vec<StepTimes> {
    let meetings = Meetings::default();
    let mut window = Window::new(&meetings);
    let mut steps: Vec<_> = spans.iter().flat_map(|span| window.push(span).unwrap()).collect();
    steps.extend(window.finish(true));
    steps
}

/// Backward of 100 µs, two buckets of which the first ends within it, then a wait.
fn step(step: u64, from: u32) -> Vec<Span> {
    vec![
        span(step, Category::Forward, None, from, 50),
        span(step, Category::Communication, Some(1), from + 90, 40),
        span(step, Category::Backward, None, from + 50, 100),
        span(step, Category::Communication, Some(0), from + 140, 40),
        span(step, Category::Wait, None, from + 150, 32),
        span(step, Category::Optimizer, None, from + 182, 10),
    ]
}

#[test]
fn exposed_is_the_part_that_the_training_thread_waited_for() {
    let times = &times(&step(1, 1000))[0];
    assert_eq!((times.communication_us, times.exposed_us, times.step_us), (80.0, 30.0, 192.0));
    assert_eq!(times.buckets_us, BTreeMap::from([(0, (40.0, 30.0)), (1, (40.0, 0.0))]));
    assert_eq!(times.phases_us, [0.0, 50.0, 100.0, 10.0, 0.0, 32.0]);
}

#[test]
fn waiting_for_a_late_rank_is_no_communication() {
    let late = Span { rank: 1, ..span(1, Category::Communication, Some(0), 1160, 20) };
    let mut meetings = Meetings::default();
    let own = step(1, 1000);
    own.iter().chain([&late]).for_each(|span| meetings.add(span));
    let mut window = Window::new(&meetings);
    own.iter().for_each(|span| assert!(window.push(span).unwrap().is_empty()));
    let times = &window.finish(true)[0];
    assert_eq!((times.communication_us, times.exposed_us, times.late_us), (60.0, 20.0, 10.0));
}

#[test]
fn a_gathering_that_the_next_step_waits_for_is_exposed_in_its_own() {
    let mut spans = step(1, 0);
    spans.push(span(2, Category::Wait, None, 200, 30));
    spans.push(span(1, Category::Communication, Some(9), 190, 50));
    let times = times(&spans);
    assert_eq!(times[0].buckets_us[&9], (50.0, 30.0));
    assert_eq!((times[1].step, times[1].exposed_us), (2, 0.0));
}

#[test]
fn communication_on_the_training_thread_is_all_exposed() {
    let mut alone = span(1, Category::Communication, Some(0), 10, 20);
    alone.thread = TRAINING_THREAD;
    let times = &times(&[span(1, Category::Backward, None, 0, 10), alone])[0];
    assert_eq!((times.communication_us, times.exposed_us, times.step_us), (20.0, 20.0, 30.0));
}

#[test]
fn a_file_cut_short_gives_the_steps_that_are_surely_whole() {
    let meetings = Meetings::default();
    let mut window = Window::new(&meetings);
    let mut steps = Vec::new();
    for number in 1..=6u32 {
        for span in step(number.into(), number * 1000) {
            steps.extend(window.push(&span).unwrap());
        }
    }
    steps.extend(window.finish(false));
    assert_eq!(steps.iter().map(|times| times.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[test]
fn steps_that_go_back_are_refused_and_spans_outside_of_steps_do_not_count() {
    let meetings = Meetings::default();
    let mut window = Window::new(&meetings);
    window.push(&span(5, Category::Data, None, 0, 1)).unwrap();
    window.push(&span(0, Category::Record, None, 0, 1)).unwrap();
    window.push(&span(4, Category::Data, None, 0, 1)).unwrap();
    assert!(window.push(&span(3, Category::Data, None, 0, 1)).unwrap_err().contains("step 3 after step 5"));
}

proptest! {
    /// However many spans a stretch of time is written as, in whatever order within its step.
    #[test]
    fn splitting_and_order_within_a_step_change_nothing(
        spans in prop::collection::vec((1u64..4, 0usize..7, 0u32..3, 0u32..300, 0u32..60), 1..40), cut in 0u32..300,
    ) {
        let mut spans: Vec<Span> = spans.into_iter().map(|(step, category, bucket, start, length)| {
            span(step, Category::ALL[category], Some(bucket), start, length)
        }).collect();
        spans.sort_by_key(|span| span.args.step);
        let mut pieces: Vec<Span> = spans.iter().flat_map(|whole| {
            let (start, end) = (whole.start_us, whole.start_us + whole.duration_us);
            let cut = f64::from(cut).clamp(start, end);
            let piece = |start, end| Span { start_us: start, duration_us: end - start, ..whole.clone() };
            [piece(cut, end), piece(start, cut)]
        }).collect();
        pieces.reverse();
        pieces.sort_by_key(|span| span.args.step);
        prop_assert_eq!(times(&spans), times(&pieces));
        for times in times(&spans) {
            prop_assert!(times.exposed_us <= times.communication_us);
            prop_assert!(times.buckets_us.values().all(|(total, exposed)| exposed <= total && *total <= times.communication_us));
        }
    }
}
