//! Processor time, as the kernel counts it.

/// Microseconds of processor time, user and system, that a process has used; 0 where that is not told.
pub fn cpu_us(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    // The kernel counts in hundredths of a second.
    (ticks(11) + ticks(12)) * 10_000.0
}
