//! The findings as pictures.

use plotters::{
    chart::{ChartBuilder, LabelAreaPosition, SeriesLabelPosition},
    prelude::{
        IntoDrawingArea, IntoSegmentedCoord, LineSeries, PathElement, Rectangle, SVGBackend,
        SegmentValue,
    },
    style::{BLACK, Color, RGBColor, WHITE},
};
use test_support::Result;

use crate::{
    curve::Curve,
    report::{Measure, Target},
};

const FOLDER: &str = "target/bench";
const WIDTH: u32 = 1000;
const COLOURS: [RGBColor; 4] = [
    RGBColor(0x1f, 0x6f, 0xb4),
    RGBColor(0xc0, 0x50, 0x20),
    RGBColor(0x30, 0x90, 0x50),
    RGBColor(0x80, 0x40, 0x90),
];
const MET: RGBColor = RGBColor(0x30, 0x90, 0x50);
const NOT_MET: RGBColor = RGBColor(0xd0, 0x30, 0x30);
const NO_TARGET: RGBColor = RGBColor(0x90, 0x90, 0x90);

/// A picture of curves: its file, and what its axes are.
const PICTURES: [(&str, &str, &str, &str); 2] = [
    (
        "long-reader",
        "drain beside a long read-only transaction",
        "seconds",
        "messages a second",
    ),
    (
        "latency",
        "created to marked, under a steady load",
        "percentile",
        "milliseconds",
    ),
];

/// Returns the files.
pub fn write(measures: &[Measure], curves: &[Curve]) -> Result<Vec<String>> {
    std::fs::create_dir_all(FOLDER)?;
    let mut files = Vec::new();
    if measures.iter().any(|m| m.ratio.is_some()) {
        files.push(ratios(measures)?);
    }
    for (picture, title, x, y) in PICTURES {
        let mine: Vec<&Curve> = curves.iter().filter(|c| c.picture == picture).collect();
        if !mine.is_empty() {
            let file = format!("{FOLDER}/{picture}.svg");
            lines(&file, [title, x, y], &mine)?;
            files.push(file);
        }
    }
    Ok(files)
}

/// Each workload beside its baseline, with a mark where its target is.
fn ratios(measures: &[Measure]) -> Result<String> {
    let file = format!("{FOLDER}/performance.svg");
    let shown: Vec<&Measure> = measures.iter().filter(|m| m.ratio.is_some()).collect();
    let most = shown.iter().filter_map(|m| m.ratio).fold(1.0, f64::max);
    // One latency of ten times its baseline would press all others against the axis.
    let most = (most * 1.1).min(2.5);
    let root = SVGBackend::new(&file, (WIDTH, 80 + 24 * shown.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let rows = (0..shown.len()).into_segmented();
    let mut chart = ChartBuilder::on(&root)
        .caption("relay beside its baseline", ("sans-serif", 18))
        .set_label_area_size(LabelAreaPosition::Left, 330)
        .set_label_area_size(LabelAreaPosition::Bottom, 30)
        .margin_right(20)
        .build_cartesian_2d(0.0..most, rows)?;
    let name = |row: &SegmentValue<usize>| match row {
        SegmentValue::CenterOf(n) | SegmentValue::Exact(n) => shown
            .get(shown.len().wrapping_sub(1).wrapping_sub(*n))
            .map_or(String::new(), |m| m.workload.clone()),
        SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(shown.len())
        .y_label_formatter(&name)
        .draw()?;
    for (n, measure) in shown.iter().rev().enumerate() {
        let colour = match measure.met {
            Some(true) => MET,
            Some(false) => NOT_MET,
            None => NO_TARGET,
        };
        let ratio = measure.ratio.unwrap_or(0.0).min(most);
        let corners = [
            (0.0, SegmentValue::Exact(n)),
            (ratio, SegmentValue::Exact(n + 1)),
        ];
        let mut bar = Rectangle::new(corners, colour.mix(0.6).filled());
        bar.set_margin(4, 4, 0, 0);
        chart.draw_series([bar])?;
        if let Target::RatioAtLeast(target) | Target::RatioAtMost(target) = measure.target {
            let mark = [
                (target, SegmentValue::Exact(n)),
                (target, SegmentValue::Exact(n + 1)),
            ];
            chart.draw_series([PathElement::new(mark, BLACK.stroke_width(2))])?;
        }
    }
    root.present()?;
    Ok(file.clone())
}

fn lines(file: &str, [title, x, y]: [&str; 3], curves: &[&Curve]) -> Result<()> {
    let root = SVGBackend::new(file, (WIDTH, 400)).into_drawing_area();
    root.fill(&WHITE)?;
    let points = || curves.iter().flat_map(|c| c.points.iter());
    let bound = |pick: fn(&(f64, f64)) -> f64, fold: fn(f64, f64) -> f64, from| {
        points()
            .map(pick)
            .filter(|v| v.is_finite())
            .fold(from, fold)
    };
    let (from, to) = (
        bound(|p| p.0, f64::min, f64::MAX),
        bound(|p| p.0, f64::max, 0.0),
    );
    let from = if from < to { from } else { 0.0 };
    let highest = bound(|p| p.1, f64::max, 1.0) * 1.1;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .set_label_area_size(LabelAreaPosition::Left, 70)
        .set_label_area_size(LabelAreaPosition::Bottom, 40)
        .margin_right(20)
        .build_cartesian_2d(from..to.max(from + 0.1), 0.0..highest)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc(x)
        .y_desc(y)
        .draw()?;
    for (curve, colour) in curves.iter().zip(COLOURS.into_iter().cycle()) {
        chart
            .draw_series(LineSeries::new(
                curve.points.iter().copied(),
                colour.stroke_width(2),
            ))?
            .label(curve.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    root.present()?;
    Ok(())
}
