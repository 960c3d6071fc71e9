//! The run as a picture: deliveries a second and the lag over time, faults as bands.

use std::path::Path;

use plotters::{
    chart::{ChartBuilder, ChartContext, LabelAreaPosition},
    coord::{Shift, types::RangedCoordf64},
    prelude::{Cartesian2d, DrawingArea, IntoDrawingArea, LineSeries, Rectangle, SVGBackend, Text},
    style::{Color, IntoFont, RGBColor, TextStyle, WHITE},
};

use crate::{
    row::Result,
    timeline::{Band, Section, Timeline},
};

const WIDTH: u32 = 1600;
const HEIGHT: u32 = 700;
const RATE: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const LAG: RGBColor = RGBColor(0xc0, 0x50, 0x20);
const FAULT: RGBColor = RGBColor(0xd0, 0x30, 0x30);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'b, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
/// A line of one row: time and value. Rows are not joined.
type Lines = Vec<Vec<(f64, f64)>>;

pub fn write(path: &Path, timeline: &Timeline) -> Result<()> {
    let (sections, bands) = (timeline.sections(), timeline.bands());
    let root = SVGBackend::new(path, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(HEIGHT / 2);
    let rates: Lines = sections.iter().map(rates).collect();
    let lags: Lines = sections.iter().map(lags).collect();
    panel(
        &upper,
        "deliveries a second",
        RATE,
        &rates,
        &sections,
        &bands,
    )?;
    panel(&lower, "lag, seconds", LAG, &lags, &sections, &bands)?;
    root.present()?;
    Ok(())
}

fn rates(section: &Section) -> Vec<(f64, f64)> {
    let pairs = section.samples.windows(2);
    pairs
        .filter(|pair| pair[1].at > pair[0].at)
        .map(|pair| {
            let more = pair[1].delivered.saturating_sub(pair[0].delivered);
            (pair[1].at, more as f64 / (pair[1].at - pair[0].at))
        })
        .collect()
}

fn lags(section: &Section) -> Vec<(f64, f64)> {
    let samples = section.samples.iter();
    samples
        .filter_map(|sample| Some((sample.at, sample.lag?)))
        .collect()
}

fn panel<'a>(
    area: &Area<'a>,
    title: &str,
    colour: RGBColor,
    lines: &Lines,
    sections: &[Section],
    bands: &[Band],
) -> Result<()> {
    let last = sections.last().map_or(1.0, |section| section.to.max(1.0));
    let highest = lines.iter().flatten().map(|(_, y)| *y).fold(1.0, f64::max) * 1.1;
    let mut chart: Chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .set_label_area_size(LabelAreaPosition::Left, 60)
        .set_label_area_size(LabelAreaPosition::Bottom, 30)
        .build_cartesian_2d(0.0..last, 0.0..highest)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc("seconds")
        .draw()?;
    for band in bands {
        let end = sections.iter().find(|section| section.row == band.row);
        let to = band.to.or(end.map(|section| section.to)).unwrap_or(last);
        let corners = [(band.from, 0.0), (to.max(band.from + 0.2), highest)];
        chart.draw_series([Rectangle::new(corners, FAULT.mix(0.15).filled())])?;
    }
    for line in lines {
        chart.draw_series(LineSeries::new(
            line.iter().copied(),
            colour.stroke_width(1),
        ))?;
    }
    // Each row by its number, where it began.
    let style = TextStyle::from(("sans-serif", 11).into_font());
    let names = sections
        .iter()
        .map(|section| Text::new(section.row.clone(), (section.from, highest), style.clone()));
    chart.draw_series(names)?;
    Ok(())
}
