//! What was measured, as a table or as JSON.

use hdrhistogram::Histogram;
use serde::Serialize;

/// The generator lagged behind its schedule, so what it measured is itself.
#[derive(Debug)]
pub struct Refused(pub String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the run is refused: {}", self.0)
    }
}

impl std::error::Error for Refused {}

/// A histogram of times up to ten minutes in microseconds; longer ones count as ten minutes.
pub fn times_us() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 600_000_000, 3)?)
}

/// Figures of all rounds.
#[derive(Debug, Default)]
pub struct Report {
    figures: Vec<Figure>,
}

#[derive(Debug)]
struct Figure {
    name: String,
    unit: &'static str,
    rounds: Vec<f64>,
}

/// A line of the report.
#[derive(Debug, PartialEq, Serialize)]
struct Line<'a> {
    name: &'a str,
    unit: &'a str,
    median: f64,
    min: f64,
    max: f64,
    rounds: usize,
}

impl Figure {
    fn line(&self) -> Line<'_> {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        // A figure exists from its first value on.
        let (min, max, median) = (sorted[0], sorted[sorted.len() - 1], sorted[sorted.len() / 2]);
        Line { name: &self.name, unit: self.unit, median, min, max, rounds: sorted.len() }
    }
}

impl Report {
    /// Adds one round's value of a figure.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, value: f64) {
        let name = name.into();
        match self.figures.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.rounds.push(value),
            None => self.figures.push(Figure { name, unit, rounds: vec![value] }),
        }
    }

    fn lines(&self) -> Vec<Line<'_>> {
        self.figures.iter().map(Figure::line).collect()
    }

    /// Prints medians with the least and the greatest of the rounds.
    pub fn print(&self, json: bool) {
        let lines = self.lines();
        if json {
            println!("{:#}", serde_json::json!({ "figures": lines }));
            return;
        }
        println!("{:<58}{:>14}{:>14}{:>14}  unit", "", "median", "min", "max");
        for Line { name, unit, median, min, max, .. } in lines {
            println!("{name:<58}{median:>14.2}{min:>14.2}{max:>14.2}  {unit}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_up_to_minutes_are_told_apart() {
        let mut times = times_us().unwrap();
        [0, 5_000, 60_000_000].into_iter().for_each(|time| times.saturating_record(time));
        assert!((4_990..5_010).contains(&times.value_at_quantile(0.5)) && times.max() > 59_900_000);
    }

    #[test]
    fn the_median_of_the_rounds_is_shown() {
        let mut report = Report::default();
        for value in [3.0, 1.0, 7.0] {
            report.add("cost", "us", value);
        }
        let line = Line { name: "cost", unit: "us", median: 3.0, min: 1.0, max: 7.0, rounds: 3 };
        assert_eq!(report.lines(), [line]);
    }
}
