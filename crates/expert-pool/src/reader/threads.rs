//! Threads with one read each.

use crate::pool::Shared;
use crate::state::Job;

/// Reads as long as there is a pool.
pub(super) fn run(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if state.shutdown {
            return;
        }
        let Some(job) = state.next_job() else {
            state = shared.bell.sleep(state);
            continue;
        };
        drop(state);
        let Job { tile, mut memory } = job;
        let done = shared.read_tile(tile, &mut memory);
        state = shared.lock();
        match done {
            Ok(read_bytes) => state.publish(tile, memory, read_bytes),
            Err(error) => state.fail(tile, memory, error),
        }
        shared.ready.notify_all();
    }
}
