//! The curve of losses.

use std::path::Path;

use plotters::{
    prelude::*,
    style::{FontStyle, register_font},
};

/// Losses by step.
#[derive(Default)]
pub struct Curve {
    /// Of each step, from 1.
    pub train: Vec<(u64, f32)>,
    /// Of what is held out.
    pub held_out: Vec<(u64, f32)>,
}

/// Text and lines: readable on light and on dark paper.
const INK: RGBColor = RGBColor(128, 128, 128);

impl Curve {
    /// Draws an SVG.
    pub fn draw(&self, path: &Path, title: &str) -> Result<(), Box<dyn std::error::Error>> {
        if register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular()).is_err() {
            return Err("the font is damaged".into());
        }
        let area = SVGBackend::new(path, (900, 480)).into_drawing_area();
        let steps = self.train.last().map_or(1, |(step, _)| *step);
        let highest = self.train.iter().map(|(_, loss)| *loss).fold(1.0, f32::max);
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18).into_font().color(&INK))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(0..steps.max(2), 0f32..1.05 * highest)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.25))
            .axis_style(INK)
            .label_style(("sans-serif", 13).into_font().color(&INK))
            .x_desc("step")
            .y_desc("loss, nats a byte")
            .draw()?;
        let lines = [
            ("learnt from", &self.train, RGBColor(69, 133, 136)),
            ("held out", &self.held_out, RGBColor(214, 93, 14)),
        ];
        for (name, points, colour) in lines {
            if points.is_empty() {
                continue;
            }
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .border_style(INK.mix(0.25))
            .label_font(("sans-serif", 13).into_font().color(&INK))
            .draw()?;
        area.present()?;
        Ok(())
    }
}
