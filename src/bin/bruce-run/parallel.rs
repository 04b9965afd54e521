//! The same work for many items, over threads, with results in order.

/// `f(0), f(1), ... f(n - 1)`, computed by at most `n_threads` threads.
pub fn map<T: Send>(n: usize, n_threads: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let per_thread = n.div_ceil(n_threads.max(1)).max(1);
    let f = &f;
    std::thread::scope(|scope| {
        let starts = (0..n).step_by(per_thread);
        let work = |start: usize| move || (start..n.min(start + per_thread)).map(f).collect::<Vec<T>>();
        let threads: Vec<_> = starts.map(|start| scope.spawn(work(start))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<T>>| match thread.join() {
            Ok(results) => results,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().flat_map(join).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::map;

    #[test]
    fn results_are_in_order_for_any_number_of_threads() {
        for n in [0, 1, 2, 7, 64] {
            for n_threads in [0, 1, 2, 3, 100] {
                assert!(map(n, n_threads, |i| i * i).into_iter().eq((0..n).map(|i| i * i)));
            }
        }
    }
}
