//! What processes have used so far, and what nobody has, from /proc.

use std::collections::HashMap;

use test_support::Result;

/// Clock ticks a second on every Linux that matters.
const TICKS: f64 = 100.0;

/// User and system time of a process, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    Ok(Stat::of(pid)?.own())
}

/// The same of a process and all below it, those that have ended included.
pub fn tree_cpu_seconds(root: u32) -> Result<f64> {
    let mut children: HashMap<u32, Vec<(u32, Stat)>> = HashMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        // One that has ended since is counted with its parent.
        if let Ok(stat) = Stat::of(pid) {
            children
                .entry(stat.field(1) as u32)
                .or_default()
                .push((pid, stat));
        }
    }
    let mut seconds = Stat::of(root)?.all();
    let mut look_at = vec![root];
    while let Some(parent) = look_at.pop() {
        for (pid, stat) in children.remove(&parent).unwrap_or_default() {
            seconds += stat.all();
            look_at.push(pid);
        }
    }
    Ok(seconds)
}

/// Of all cores since the machine's start: idle, and waiting for a disk. See proc(5), /proc/stat.
pub fn idle_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let all = stat.lines().next().unwrap_or_default().split_whitespace();
    let fields: Vec<f64> = all.skip(1).filter_map(|n| n.parse().ok()).collect();
    match fields[..] {
        [_user, _nice, _system, idle, iowait, ..] => Ok((idle + iowait) / TICKS),
        _ => Err("/proc/stat is not what proc(5) says".into()),
    }
}

/// Most memory that a process has held, in bytes.
pub fn peak_memory(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .ok_or("no VmHWM")?;
    let kilobytes: f64 = line.split_whitespace().nth(1).ok_or("no VmHWM")?.parse()?;
    Ok(kilobytes * 1024.0)
}

/// What follows the name in /proc/PID/stat.
struct Stat(Vec<f64>);

impl Stat {
    fn of(pid: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        let number = |text: &str| text.parse().unwrap_or(0.0);
        Ok(Self(after_name.split(' ').map(number).collect()))
    }

    fn field(&self, n: usize) -> f64 {
        self.0.get(n).copied().unwrap_or(0.0)
    }

    /// Of the process alone.
    fn own(&self) -> f64 {
        (self.field(11) + self.field(12)) / TICKS
    }

    /// And of its children that have ended.
    fn all(&self) -> f64 {
        self.own() + (self.field(13) + self.field(14)) / TICKS
    }
}
