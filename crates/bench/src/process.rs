//! What processes have used so far, and what nobody has, from /proc.

use std::collections::HashMap;

use test_support::Result;

/// Clock ticks a second on every Linux that matters.
const TICKS: f64 = 100.0;

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

    /// Of the process, and of its children that have ended.
    fn all(&self) -> f64 {
        (11..=14).map(|n| self.field(n)).sum::<f64>() / TICKS
    }
}
