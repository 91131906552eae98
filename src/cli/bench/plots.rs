//! Pictures of measurements: one a suite, readable on light and on dark paper.

use std::path::Path;

use plotters::{
    coord::Shift,
    prelude::*,
    style::{FontStyle, register_font},
};

use super::Row;

/// Ours, then peers in order.
const COLOURS: [RGBColor; 5] = [
    RGBColor(214, 93, 14),
    RGBColor(69, 133, 136),
    RGBColor(104, 157, 106),
    RGBColor(177, 98, 134),
    RGBColor(150, 140, 120),
];
/// Text and lines: between black and white.
pub const INK: RGBColor = RGBColor(128, 128, 128);

/// Makes text possible in every picture; the font travels with the program.
pub fn fonts() -> Result<(), String> {
    register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| "the font is damaged".to_owned())
}

/// Draws on an SVG or PNG file, by its name.
pub fn draw(
    path: &Path,
    size: (u32, u32),
    svg: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), String>,
    png: impl FnOnce(&DrawingArea<BitMapBackend<'_>, Shift>) -> Result<(), String>,
) -> Result<(), String> {
    fonts()?;
    let said = |problem: String| format!("{}: {problem}", path.display());
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => {
            let area = SVGBackend::new(path, size).into_drawing_area();
            svg(&area).map_err(said)?;
            area.present().map_err(|error| said(error.to_string()))
        }
        Some("png") => {
            // A bitmap has no transparent ground here: near-black shows all colours.
            let area = BitMapBackend::new(path, size).into_drawing_area();
            area.fill(&RGBColor(24, 24, 27))
                .map_err(|error| said(error.to_string()))?;
            png(&area).map_err(said)?;
            area.present().map_err(|error| said(error.to_string()))
        }
        _ => Err(said("the name must end in .svg or .png".into())),
    }
}

/// What bars of a suite show.
fn value(row: &Row, microseconds: f64, compute: bool) -> f64 {
    let work = if compute { row.flops as f64 } else { row.bytes as f64 };
    work / microseconds / 1e6
}

/// Horizontal bars of a suite: ours and every peer's.
pub fn suite(path: &Path, title: &str, rows: &[&Row]) -> Result<(), String> {
    let lines: usize = rows.iter().map(|row| 1 + row.peers.len()).sum::<usize>() + rows.len();
    let size = (900, 70 + 14 * lines as u32);
    draw(
        path,
        size,
        |area| bars(area, title, rows),
        |area| bars(area, title, rows),
    )
}

fn bars<B: DrawingBackend>(area: &DrawingArea<B, Shift>, title: &str, rows: &[&Row]) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    // Bound by arithmetic where most of it is.
    let compute = rows.iter().filter(|row| row.flops / row.bytes.max(1) > 50).count() * 2 > rows.len();
    let best = |row: &&&Row| {
        let fastest = row
            .peers
            .iter()
            .map(|peer| peer.microseconds)
            .fold(row.timing.p50, f64::min);
        value(row, fastest, compute)
    };
    let top = rows.iter().map(|row| best(&row)).fold(1e-9, f64::max);
    let (width, _) = area.dim_in_pixel();
    let (left, right) = (330, width as i32 - 70);
    let small = ("sans-serif", 12).into_font().color(&INK);
    let big = ("sans-serif", 16).into_font().color(&INK);
    let unit = if compute { "TFLOP/s" } else { "TB/s" };
    area.draw_text(&format!("{title}, {unit}"), &big, (10, 10))
        .map_err(|e| said(&e))?;
    let mut names: Vec<&str> = vec!["ferroflash"];
    for peer in rows.iter().flat_map(|row| &row.peers) {
        if !names.contains(&peer.name.as_str()) {
            names.push(&peer.name);
        }
    }
    let mut x = left;
    for (index, name) in names.iter().enumerate() {
        let colour = COLOURS[index.min(COLOURS.len() - 1)];
        area.draw(&Rectangle::new([(x, 34), (x + 10, 44)], colour.filled()))
            .map_err(|e| said(&e))?;
        area.draw_text(name, &small, (x + 14, 33)).map_err(|e| said(&e))?;
        x += 30 + 7 * name.len() as i32;
    }
    let mut y = 60;
    for row in rows {
        area.draw_text(&row.case, &small, (10, y)).map_err(|e| said(&e))?;
        let ours = ("ferroflash", row.timing.p50);
        for (name, us) in [ours]
            .into_iter()
            .chain(row.peers.iter().map(|peer| (peer.name.as_str(), peer.microseconds)))
        {
            let index = names.iter().position(|known| *known == name).unwrap_or(0);
            let colour = COLOURS[index.min(COLOURS.len() - 1)];
            let rate = value(row, us, compute);
            let end = left + ((right - left) as f64 * rate / top) as i32;
            area.draw(&Rectangle::new([(left, y), (end, y + 10)], colour.filled()))
                .map_err(|e| said(&e))?;
            let label = if compute {
                format!("{rate:.0}")
            } else {
                format!("{rate:.2}")
            };
            area.draw_text(&label, &small, (end + 4, y - 1)).map_err(|e| said(&e))?;
            y += 14;
        }
        y += 14;
    }
    Ok(())
}
