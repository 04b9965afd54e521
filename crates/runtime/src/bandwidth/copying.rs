//! How fast a device takes weights of the host, and how fast the CPU multiplies them with many rows of activations: what
//! decides whether a large batch is computed there or here.

use crate::Error;
use crate::staging::{CHUNK_BYTES, N_COPIERS};
use ggml::{Buffer, Context, CopyStream, Device, Type};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Chunks of a round, and how long is measured.
const N_CHUNKS: usize = 12;
const TIME: Duration = Duration::from_millis(100);

/// Bytes a second that arrive on `device` from `source`, copied as experts are staged: the best of short rounds. `None` where
/// that needs more than `room_bytes` of its memory, or `source` is empty.
///
/// # Errors
/// Where the device fails.
pub fn copy_rate(device: Device, source: &[u8], room_bytes: u64) -> Result<Option<f64>, Error> {
    let n_bytes = CHUNK_BYTES.min(source.len());
    if n_bytes == 0 || (N_COPIERS * n_bytes) as u64 > room_bytes {
        return Ok(None);
    }
    let context = Context::new(N_COPIERS);
    let targets: [_; N_COPIERS] = std::array::from_fn(|_| context.tensor("copied", Type::I8, &[n_bytes]));
    Buffer::allocate(device.buffer_type(), &targets, "a measurement")?;
    let mut streams =
        (0..N_COPIERS).map(|_| CopyStream::new(device, n_bytes)).collect::<Result<Vec<_>, _>>()?;
    let n_places = source.len() / n_bytes;
    let mut round = || {
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (stream, target) in streams.iter_mut().zip(&targets) {
                let next = &next;
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= N_CHUNKS {
                            break;
                        }
                        let at = index % n_places * n_bytes;
                        stream.bytes().copy_from_slice(&source[at..at + n_bytes]);
                        stream.send(n_bytes, target, 0);
                    }
                    stream.wait();
                });
            }
        });
        start.elapsed()
    };
    // The first finds memory and threads asleep.
    round();
    let (mut best, start) = (Duration::MAX, Instant::now());
    while best == Duration::MAX || start.elapsed() < TIME {
        best = best.min(round());
    }
    Ok(Some((N_CHUNKS * n_bytes) as f64 / best.as_secs_f64().max(1e-9)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_takes_bytes_at_a_rate_where_there_is_room() {
        let device = ggml::stand_in::register(1, 64 << 20).expect("registered")[0];
        let source = vec![1; (8 << 20) + 5];
        let rate = copy_rate(device, &source, 64 << 20).expect("measured").expect("room");
        assert!(rate > 1e6 && rate < 1e13, "{rate}");
        assert_eq!(copy_rate(device, &source, 1 << 20).expect("no room"), None);
        assert_eq!(copy_rate(device, &[], 64 << 20).expect("nothing"), None);
        assert_eq!(device.memory().0, 64 << 20, "all was given back");
    }
}
