//! How much memory the process held at most, and could still get.

/// The most resident memory since the start of the process or the last [`reset_peak`], in bytes.
pub fn peak() -> Option<u64> {
    system::peak()
}

/// Starts [`peak`] anew from what is resident now. Returns false where the system cannot, and peaks are then those
/// of the whole process. Linux forgets the earlier peak for everyone: `/usr/bin/time` sees the last one only.
pub fn reset_peak() -> bool {
    system::reset_peak()
}

/// Memory that can be had without swapping, in bytes.
pub fn available() -> Option<u64> {
    system::available()
}

/// Gives memory that was freed back to the system, where the allocator keeps it.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: malloc_trim may be called at any time; it only touches memory that is free.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::fs;

    /// A line `Name:   123 kB` of a file under /proc, in bytes.
    fn field(path: &str, name: &str) -> Option<u64> {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    }

    pub(super) fn peak() -> Option<u64> {
        field("/proc/self/status", "VmHWM")
    }

    pub(super) fn reset_peak() -> bool {
        // proc(5): 5 resets the peak resident set size of the process to its present one.
        fs::write("/proc/self/clear_refs", "5").is_ok()
    }

    pub(super) fn available() -> Option<u64> {
        field("/proc/meminfo", "MemAvailable")
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
mod system {
    use std::mem::MaybeUninit;

    pub(super) fn peak() -> Option<u64> {
        let mut usage = MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: `usage` is writable and of the type that getrusage fills.
        let status = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
        if status != 0 {
            return None;
        }
        // SAFETY: getrusage succeeded, so it has filled all of `usage`.
        let usage = unsafe { usage.assume_init() };
        // Apple counts bytes, the other systems kibibytes.
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        u64::try_from(usage.ru_maxrss).ok()?.checked_mul(unit)
    }

    pub(super) fn reset_peak() -> bool {
        false
    }

    pub(super) fn available() -> Option<u64> {
        None
    }
}

#[cfg(not(unix))]
mod system {
    pub(super) fn peak() -> Option<u64> {
        None
    }

    pub(super) fn reset_peak() -> bool {
        false
    }

    pub(super) fn available() -> Option<u64> {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_sees_memory_that_is_gone() {
        let size = 256 << 20;
        let before = peak().unwrap();
        // Read from a variable, so that pages of zeros are really written.
        drop(std::hint::black_box(vec![1_u8; size]));
        let after = peak().unwrap();
        assert!(after >= before.max(size as u64), "{before} then {after}");
        assert!(available().unwrap() > 0);
    }
}
