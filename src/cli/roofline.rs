//! `ferroflash roofline`: every measured kernel under the ceilings of its GPU.

use std::path::PathBuf;

use clap::Args;
use plotters::{coord::Shift, prelude::*};
use serde::Serialize;

use super::{
    DeviceArgs, Failure, Outcome,
    bench::{self, Environment, Report, plots},
    report,
};

/// Arguments of `roofline`.
#[derive(Args)]
pub struct RooflineArgs {
    /// Figures of an earlier `bench --json`, instead of measuring now.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Picture to draw: .svg or .png.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write the table to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A kernel at a shape.
#[derive(Clone, Debug, Serialize)]
struct Point {
    op: String,
    case: String,
    /// Floating-point operations a byte that must move.
    intensity: f64,
    teraflops_per_second: f64,
    /// What the ceilings allow at this intensity, TFLOP/s.
    ceiling: f64,
    share: f64,
}

#[derive(Serialize)]
struct Roofline {
    environment: Environment,
    copy_terabytes_per_second: f64,
    matrix_teraflops_per_second: f64,
    /// Intensity at which the ceilings meet.
    ridge: f64,
    points: Vec<Point>,
}

/// Measures or reads, prints the table and draws.
pub fn roofline(args: RooflineArgs) -> Outcome {
    let measured = match &args.from {
        Some(path) => read(path)?,
        None => {
            let device = args.device.open()?;
            if device.is_emulator() {
                return Err(Failure::Failed(format!(
                    "a roofline needs a GPU, and there is none ({}); --from draws the figures of `bench --json`",
                    device.selection()
                )));
            }
            bench::quick(&device, &[])?
        }
    };
    let roofline = points(&measured);
    let mut table = report::table(&["kernel", "FLOP/byte", "TFLOP/s", "ceiling", "share"]);
    for point in &roofline.points {
        table.add_row(vec![
            format!("{} {}", point.op, point.case),
            format!("{:.2}", point.intensity),
            format!("{:.2}", point.teraflops_per_second),
            format!("{:.1}", point.ceiling),
            format!("{:.0} %", 100.0 * point.share),
        ]);
    }
    say!("{table}");
    draw(&measured, &args.out)?;
    say!("{}", args.out.display());
    match &args.json {
        Some(path) => report::write_json(path, &roofline),
        None => Ok(()),
    }
}

/// Draws the figures of a run.
pub fn draw(report: &Report, path: &std::path::Path) -> Outcome {
    let roofline = points(report);
    plots::draw(
        path,
        (900, 560),
        |area| picture(area, &roofline),
        |area| picture(area, &roofline),
    )
    .map_err(Failure::Failed)
}

/// The figures that `bench --json` wrote.
pub fn read(path: &std::path::Path) -> Result<Report, Failure> {
    let said = |problem: String| Failure::Failed(format!("{}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| said(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| said(format!("not a file of `bench --json`: {error}")))
}

fn points(report: &Report) -> Roofline {
    let (copy, matrix) = (report.ceilings.copy, report.ceilings.matrix);
    let points = report
        .rows
        .iter()
        .map(|row| {
            // Where nobody counts the arithmetic, one operation an element stands for it: such kernels are under the slope.
            let flops = if row.flops > 0 { row.flops } else { row.bytes / 4 };
            let intensity = flops as f64 / row.bytes.max(1) as f64;
            let rate = flops as f64 / row.timing.p50 / 1e6;
            let ceiling = (intensity * copy).min(matrix);
            Point {
                op: row.op.clone(),
                case: row.case.clone(),
                intensity,
                teraflops_per_second: rate,
                ceiling,
                share: rate / ceiling,
            }
        })
        .collect();
    Roofline {
        environment: report.environment.clone(),
        copy_terabytes_per_second: copy,
        matrix_teraflops_per_second: matrix,
        ridge: matrix / copy,
        points,
    }
}

const COLOURS: [RGBColor; 6] = [
    RGBColor(214, 93, 14),
    RGBColor(69, 133, 136),
    RGBColor(104, 157, 106),
    RGBColor(177, 98, 134),
    RGBColor(215, 153, 33),
    RGBColor(131, 165, 152),
];

fn picture<B: DrawingBackend>(area: &DrawingArea<B, Shift>, roofline: &Roofline) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let (copy, matrix) = (roofline.copy_terabytes_per_second, roofline.matrix_teraflops_per_second);
    let ink = &plots::INK;
    let text = |size: i32| ("sans-serif", size).into_font().color(ink);
    let title = format!(
        "Roofline, {}, {}",
        roofline.environment.device, roofline.environment.date
    );
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(title, text(18))
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((0.1f64..20_000.0).log_scale(), (0.01f64..2_000.0).log_scale())
        .map_err(|e| said(&e))?;
    chart
        .configure_mesh()
        .x_desc("floating-point operations a byte")
        .y_desc("TFLOP/s")
        .axis_style(ink)
        .label_style(text(13))
        .light_line_style(TRANSPARENT)
        .bold_line_style(ink.mix(0.25))
        .draw()
        .map_err(|e| said(&e))?;
    let roof = [(0.1, 0.1 * copy), (roofline.ridge, matrix), (20_000.0, matrix)];
    chart
        .draw_series(LineSeries::new(roof, ink.stroke_width(2)))
        .map_err(|e| said(&e))?;
    let mut ops: Vec<&str> = Vec::new();
    for point in &roofline.points {
        if !ops.contains(&point.op.as_str()) {
            ops.push(&point.op);
        }
    }
    for (index, op) in ops.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let size = if index < COLOURS.len() { 4 } else { 3 };
        let here = roofline.points.iter().filter(|point| point.op == *op);
        let mark = move |at: (f64, f64)| {
            let style = if index < COLOURS.len() {
                colour.filled()
            } else {
                colour.stroke_width(1)
            };
            Circle::new(at, size, style)
        };
        chart
            .draw_series(here.map(|point| mark((point.intensity, point.teraflops_per_second))))
            .map_err(|e| said(&e))?
            .label(*op)
            .legend(move |(x, y)| {
                let style = if index < COLOURS.len() {
                    colour.filled()
                } else {
                    colour.stroke_width(1)
                };
                Circle::new((x + 8, y), size, style)
            });
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .label_font(text(12))
        .border_style(TRANSPARENT)
        .draw()
        .map_err(|e| said(&e))
}
