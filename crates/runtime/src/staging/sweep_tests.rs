use super::*;

const STOP: Stop = Stop { device: 0, n_expert: 2, may_skip: true, has_slots: false };

/// So many layers in two stacks.
fn layers(n: usize) -> Sweep {
    Sweep::new(vec![STOP; n])
}

/// The next item, if it may be copied now.
fn next(sweep: &Sweep) -> Option<Item> {
    let mut state = sweep.lock();
    let item = sweep.advance(&mut state)?;
    state.n_under_way[item.layer] += 1;
    Some(item)
}

/// All that may be copied now.
fn items(sweep: &Sweep) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    while let Some(item) = next(sweep) {
        found.push((item.layer, item.expert));
        sweep.done(item, Outcome::Arrived);
    }
    sweep.changed.notify_all();
    found.dedup();
    found
}

#[test]
fn a_stack_is_filled_anew_when_the_gate_after_its_layer_is_entered() {
    let sweep = layers(4);
    assert_eq!(items(&sweep), [], "nothing is computed");
    sweep.begin(4, false);
    assert_eq!(items(&sweep), [(0, 0), (0, 1), (1, 0), (1, 1)]);
    sweep.enter(0, &[0, 1]);
    assert_eq!(items(&sweep), [], "layer 0 is being computed");
    sweep.enter(1, &[0, 1]);
    assert_eq!(items(&sweep), [(2, 0), (2, 1)]);
    sweep.enter(2, &[0, 1]);
    assert_eq!(items(&sweep), [(3, 0), (3, 1)]);
    sweep.enter(3, &[0, 1]);
    assert_eq!(items(&sweep), []);
    sweep.finish().expect("nothing failed");
    // Layers 2 and 3 are there now.
    sweep.begin(4, false);
    assert_eq!(items(&sweep), [(0, 0), (0, 1), (1, 0), (1, 1)]);
}

#[test]
fn what_is_there_stays_there() {
    let sweep = layers(2);
    sweep.begin(2, false);
    assert_eq!(items(&sweep).len(), 4);
    sweep.finish().expect("nothing failed");
    sweep.begin(2, false);
    assert_eq!(items(&sweep), []);
    sweep.enter(0, &[0, 1]);
    sweep.enter(1, &[1, 0]);
}

#[test]
fn experts_that_nobody_chose_are_left_out_once_that_is_known() {
    for may_skip in [true, false] {
        let stop = Stop { may_skip, n_expert: 4, ..STOP };
        let sweep = Sweep::new(vec![stop]);
        sweep.begin(1, false);
        let first = next(&sweep).expect("there is something to do");
        assert_eq!((first.layer, first.expert, first.projection), (0, 0, 0));
        std::thread::scope(|scope| {
            let gate = scope.spawn(|| sweep.enter(0, &[2, 2]));
            while sweep.lock().n_entered == 0 {
                std::thread::yield_now();
            }
            sweep.done(first, Outcome::Arrived);
            assert!(!gate.is_finished(), "expert 2 is not there");
            let found = items(&sweep);
            let expected: &[_] = if may_skip { &[(0, 2)] } else { &[(0, 0), (0, 1), (0, 2), (0, 3)] };
            assert_eq!(found, expected);
        });
    }
}

#[test]
fn a_failure_opens_all_gates_and_is_told_once() {
    let sweep = layers(4);
    sweep.begin(4, false);
    let item = next(&sweep).expect("there is something to do");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..4).for_each(|layer| {
                sweep.enter(layer, &[0]);
            });
        });
        sweep.done(item, Outcome::Failed(crate::Error::Stopped));
    });
    assert!(sweep.is_over());
    assert!(matches!(sweep.finish(), Err(crate::Error::Stopped)));
    // What did not arrive is copied again.
    sweep.begin(4, false);
    assert_eq!(sweep.take(), Some(Job::Copy(item)));
    sweep.done(item, Outcome::Arrived);
    sweep.finish().expect("it is there now");
}

#[test]
fn the_first_at_a_gate_is_told_where_all_are_experts() {
    let sweep = layers(4);
    sweep.begin(4, false);
    items(&sweep);
    assert!(sweep.enter(0, &[0, 1]), "the first");
    assert!(!sweep.enter(0, &[0, 1]), "another thread");
    assert!(!sweep.enter(1, &[0, -7]), "what a device left that failed");
    sweep.finish().expect("nothing failed");
}

#[test]
fn whoever_finishes_waits_for_what_is_being_copied() {
    let sweep = layers(4);
    sweep.begin(1, false);
    let item = next(&sweep).expect("there is something to do");
    std::thread::scope(|scope| {
        let end = scope.spawn(|| sweep.finish());
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!end.is_finished());
        sweep.done(item, Outcome::Arrived);
        end.join().expect("no panic").expect("nothing failed");
    });
    sweep.shut_down();
    assert_eq!(sweep.take(), None);
}

/// Passes the gates of these layers, and gives what may be copied after each.
fn passed(sweep: &Sweep, gates: std::ops::Range<usize>) -> Vec<Vec<(usize, usize)>> {
    let pass = |gate| {
        sweep.enter(gate, &[0, 1]);
        items(sweep)
    };
    gates.map(pass).collect()
}

#[test]
fn the_next_computations_first_layer_is_copied_during_the_last_of_this() {
    let layer = |n: usize| vec![(n, 0), (n, 1)];
    for n in [4, 5] {
        let sweep = layers(n);
        sweep.begin(n, true);
        items(&sweep);
        let mut expected: Vec<_> = (1..n).map(|gate| layer((gate + 1) % n)).collect();
        expected.insert(0, vec![]);
        assert_eq!(passed(&sweep, 0..n), expected, "{n} layers");
        let ([before, after], last) = (sweep.lock().orders, n - 1);
        assert_ne!(before.stack(0, last), after.stack(0, 0), "the last layer is being computed");
        sweep.finish().expect("nothing failed");
        // What follows has its first layer, and may have one layer less.
        sweep.begin(n - 1, true);
        assert_eq!(items(&sweep), layer(1), "{n} layers");
        assert_eq!(passed(&sweep, 0..n - 1).concat().len(), 2 * (n - 3) + 2);
        sweep.finish().expect("nothing failed");
        sweep.begin(n, false);
        assert_eq!(items(&sweep), layer(1), "{n} layers");
        passed(&sweep, 0..n);
        assert_eq!(items(&sweep), [], "nothing follows");
        sweep.finish().expect("nothing failed");
    }
}

#[test]
fn devices_that_are_through_are_filled_for_the_next_computation() {
    let sweep = Sweep::new((0..6).map(|layer| Stop { device: layer / 3, ..STOP }).collect());
    sweep.begin(6, true);
    let found: Vec<usize> =
        items(&sweep).into_iter().chain(passed(&sweep, 0..6).concat()).map(|(l, _)| l).collect();
    assert_eq!(found, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0, 0, 1, 1]);
}

#[test]
fn a_failure_ahead_is_nobodys_failure() {
    let sweep = layers(4);
    sweep.begin(4, true);
    items(&sweep);
    passed(&sweep, 0..3);
    sweep.enter(3, &[0, 1]);
    let ahead = next(&sweep).expect("layer 0");
    assert!(ahead.is_ahead && ahead.layer == 0);
    sweep.done(ahead, Outcome::Failed(crate::Error::Stopped));
    assert_eq!(next(&sweep), None, "no more is tried");
    assert!(!sweep.is_over());
    sweep.finish().expect("what was asked for is there");
    sweep.begin(4, false);
    assert_eq!(next(&sweep), Some(Item { is_ahead: false, ..ahead }));
}

#[test]
fn experts_are_kept_before_their_stack_is_filled_anew() {
    let sweep = Sweep::new(vec![Stop { has_slots: true, ..STOP }; 3]);
    sweep.begin(3, false);
    items(&sweep);
    sweep.enter(0, &[1, 1]);
    let kept = Kept { layer: 0, stack: 0, ids: vec![1, 1], has: vec![true, true] };
    assert_eq!(sweep.take(), Some(Job::Keep(kept)));
    sweep.enter(1, &[0, 1]);
    assert_eq!(items(&sweep), [], "layer 0 is still needed");
    sweep.kept(0, Outcome::Arrived);
    assert_eq!(items(&sweep), [(2, 0), (2, 1)]);
    let Some(Job::Keep(second)) = sweep.take() else { panic!("layer 1 has arrived") };
    std::thread::scope(|scope| {
        let end = scope.spawn(|| sweep.finish());
        while sweep.lock().n_layers > 0 {
            std::thread::yield_now();
        }
        assert!(!end.is_finished());
        sweep.kept(second.layer, Outcome::Arrived);
        end.join().expect("no panic").expect("nothing failed");
    });
}
