//! Medians, and the table they are printed in.

use std::fmt::Write as _;

/// One line of the table.
pub struct Row {
    pub work: String,
    pub ours: String,
    pub peers: String,
    /// What is compared with the goal.
    pub reached: String,
    pub goal: String,
    pub holds: bool,
}

impl Row {
    /// Ours as a part of a peer's, both in `unit`.
    pub fn ratio(work: &str, ours: f64, peer: (&str, f64), unit: &str, goal: f64) -> Self {
        let ratio = ours / peer.1;
        Self {
            work: work.to_owned(),
            ours: format!("{} {unit}", short(ours)),
            peers: format!("{} {} {unit}", peer.0, short(peer.1)),
            reached: format!("{ratio:.2} x"),
            goal: format!("<= {goal:.2} x"),
            holds: ratio <= goal,
        }
    }

    /// Ours against a fixed limit.
    pub fn limit(work: &str, ours: f64, unit: &str, limit: f64) -> Self {
        Self {
            work: work.to_owned(),
            ours: format!("{} {unit}", short(ours)),
            peers: String::new(),
            reached: format!("{} {unit}", short(ours)),
            goal: format!("<= {} {unit}", short(limit)),
            holds: ours <= limit,
        }
    }

    /// Mentions one more peer.
    pub fn beside(mut self, peer: &str, value: f64, unit: &str) -> Self {
        if !self.peers.is_empty() {
            self.peers.push_str("; ");
        }
        // Writing to a String does not fail.
        let _ = write!(self.peers, "{peer} {} {unit}", short(value));
        self
    }
}

/// Three figures that count.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle of the values, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The table as Markdown.
pub fn print(rows: &[Row]) {
    println!("\n| Work | ecr-proxy | beside it | reached | goal | |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for row in rows {
        let verdict = if row.holds { "ok" } else { "MISSED" };
        println!(
            "| {} | {} | {} | {} | {} | {verdict} |",
            row.work, row.ours, row.peers, row.reached, row.goal
        );
    }
}
