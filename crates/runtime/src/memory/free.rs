//! What is free on the host and on devices at one moment, and whether something fits there.

use super::available_bytes;
use crate::Error;
use ggml::{BufferType, Device};

/// Free memory, by kind.
pub(crate) struct Free {
    host_bytes: Option<u64>,
    devices: Vec<(BufferType, u64)>,
}

impl Free {
    /// What the host and these devices have now.
    pub fn now(devices: &[Device]) -> Free {
        let of_device = |device: &Device| (device.buffer_type(), device.memory().0 as u64);
        Free { host_bytes: available_bytes(), devices: devices.iter().map(of_device).collect() }
    }

    /// Bytes free in this kind of memory, the host's where it is no device's; `None` where nobody knows.
    fn bytes(&self, place: BufferType) -> Option<u64> {
        let device = self.devices.iter().find(|(at, _)| *at == place);
        device.map_or(self.host_bytes, |(_, bytes)| Some(*bytes))
    }

    /// Refuses a context that does not fit: sizes of its cache and of its compute buffers, by kind of memory.
    ///
    /// # Errors
    /// [`Error::ContextMemory`] names the first kind of memory that has too little.
    pub fn check_context(
        &self,
        n_ctx: usize,
        caches: &[(BufferType, u64)],
        buffers: &[(BufferType, u64)],
    ) -> Result<(), Error> {
        let in_place = |sizes: &[(BufferType, u64)], place: BufferType| -> u64 {
            sizes.iter().filter(|(at, _)| *at == place).fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
        };
        for (place, _) in caches.iter().chain(buffers) {
            let (kv_bytes, compute_bytes) = (in_place(caches, *place), in_place(buffers, *place));
            let needed_bytes = kv_bytes.saturating_add(compute_bytes);
            match self.bytes(*place) {
                Some(available_bytes) if needed_bytes > available_bytes => {
                    return Err(Error::ContextMemory {
                        place: place.name(),
                        n_ctx: n_ctx as u64,
                        needed_bytes,
                        kv_bytes,
                        compute_bytes,
                        available_bytes,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses stacks for experts that do not fit beside a context: sizes by kind of memory.
    ///
    /// # Errors
    /// [`Error::StagingMemory`] names the first kind of memory that has too little.
    pub fn check_staging(
        &self,
        stacks: &[(BufferType, u64)],
        caches: &[(BufferType, u64)],
        buffers: &[(BufferType, u64)],
    ) -> Result<(), Error> {
        for (place, needed_bytes) in stacks {
            let beside = caches.iter().chain(buffers).filter(|(at, _)| at == place);
            let context_bytes = beside.fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
            match self.bytes(*place) {
                Some(available_bytes) if needed_bytes.saturating_add(context_bytes) > available_bytes => {
                    let (place, needed_bytes) = (place.name(), *needed_bytes);
                    return Err(Error::StagingMemory { place, needed_bytes, context_bytes, available_bytes });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses weights that do not fit.
    ///
    /// # Errors
    /// [`Error::WeightMemory`].
    pub fn check_weights(&self, place: BufferType, needed_bytes: u64) -> Result<(), Error> {
        match self.bytes(place) {
            Some(available_bytes) if needed_bytes > available_bytes => {
                Err(Error::WeightMemory { place: place.name(), needed_bytes, available_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Refuses to lock more of the host's memory than is free.
    ///
    /// # Errors
    /// [`Error::LockedMemory`].
    pub fn check_lock(&self, needed_bytes: u64) -> Result<(), Error> {
        match self.host_bytes {
            Some(available_bytes) if needed_bytes > available_bytes => {
                Err(Error::LockedMemory { needed_bytes, available_bytes })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_and_buffers_of_one_place_count_together() {
        let host = BufferType::cpu();
        let free = |host_bytes| Free { host_bytes, devices: Vec::new() };
        let check = |free: Free, cache, buffer| free.check_context(256, &[(host, cache)], &[(host, buffer)]);
        assert!(check(free(Some(100)), 60, 40).is_ok());
        let error = check(free(Some(100)), 60, 41).expect_err("too much").to_string();
        assert!(
            error.contains("CPU") && error.contains("101 bytes") && error.contains("100 are free"),
            "{error}"
        );
        assert!(check(free(Some(100)), u64::MAX, u64::MAX).is_err());
        assert!(check(free(None), u64::MAX, 1).is_ok());
    }

    #[test]
    fn the_largest_context_is_named_in_full() {
        let free = Free { host_bytes: Some(1), devices: Vec::new() };
        let caches = [(BufferType::cpu(), u64::MAX)];
        let error = free.check_context(1 << 32, &caches, &[]).expect_err("too much").to_string();
        assert!(error.contains("a context of 4294967296 tokens"), "{error}");
    }

    #[test]
    fn no_more_is_locked_than_is_free() {
        let free = |host_bytes| Free { host_bytes, devices: Vec::new() };
        assert!(free(Some(100)).check_lock(100).is_ok());
        assert!(free(None).check_lock(u64::MAX).is_ok());
        let error = free(Some(100)).check_lock(101).expect_err("too much").to_string();
        assert!(error.contains("--mlock") && error.contains("101 bytes"), "{error}");
    }

    #[test]
    fn a_device_has_its_own_memory() {
        let device = ggml::stand_in::register(1, 1 << 20).expect("registered")[0];
        let free = Free::now(&[device]);
        assert!(free.check_weights(device.buffer_type(), 1 << 20).is_ok());
        let error =
            free.check_weights(device.buffer_type(), (1 << 20) + 1).expect_err("too much").to_string();
        assert!(error.contains(&device.name()) && error.contains("1048577 bytes"), "{error}");
    }
}
