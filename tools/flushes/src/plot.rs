//! The plot of the book: executions over CPUs, a panel for each trace, both axes logarithmic.

use std::fmt::Write;

use crate::report::Row;
use crate::trace::Kind;

/// A panel's inner width and height, and where the first begins.
const SIZE: (f64, f64) = (250.0, 230.0);
const LEFT: f64 = 60.0;
const TOP: f64 = 36.0;
/// From one panel to the next.
const STEP: f64 = 275.0;
/// Powers of ten on the vertical axis.
const DECADES: (i32, i32) = (2, 6);
/// Colours that differ in lightness, too.
const COLOURS: [&str; 5] = ["#b2182b", "#ef8a62", "#7b5aa6", "#1b7837", "#222222"];

fn x(cpus: u16) -> f64 {
    // 16 to 256.
    (f64::from(cpus).log2() - 4.0) / 4.0 * SIZE.0
}

fn y(count: u64) -> f64 {
    let (low, high) = (f64::from(DECADES.0), f64::from(DECADES.1));
    SIZE.1 * (1.0 - ((count.max(1) as f64).log10() - low) / (high - low)).clamp(0.0, 1.0)
}

/// The plot of those rows that have so much free memory.
pub fn svg(rows: &[Row], free: u64) -> String {
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        LEFT + STEP * 3.0,
        TOP + SIZE.1 + 80.0,
    );
    for (at, kind) in Kind::ALL.into_iter().enumerate() {
        let rows: Vec<_> = rows.iter().filter(|row| row.kind == kind && row.free == free).collect();
        panel(&mut text, LEFT + STEP * at as f64, kind, &rows);
    }
    legend(&mut text, rows);
    text += "</svg>\n";
    text
}

fn panel(text: &mut String, left: f64, kind: Kind, rows: &[&Row]) {
    let (width, height) = SIZE;
    let _ = writeln!(text, "<g transform=\"translate({left},{TOP})\">");
    let _ = writeln!(text, "<text x=\"{}\" y=\"-12\" text-anchor=\"middle\">{}</text>", width / 2.0, kind.name());
    for decade in DECADES.0..=DECADES.1 {
        let at = y(10u64.pow(decade as u32));
        let _ = writeln!(text, "<path d=\"M0 {at:.1}H{width}\" stroke=\"#ddd\"/>");
        if left == LEFT {
            let label = 10u64.pow(decade as u32);
            let _ = writeln!(text, "<text x=\"-6\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", at + 4.0);
        }
    }
    let _ = writeln!(text, "<path d=\"M0 0V{height}H{width}\" fill=\"none\" stroke=\"black\"/>");
    for row in rows {
        let (at, below) = (x(row.cpus), height + 16.0);
        let _ = writeln!(text, "<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{}</text>", row.cpus);
    }
    for (line, colour) in COLOURS.iter().enumerate() {
        let points = rows.iter().filter_map(|row| Some((x(row.cpus), y(row.lines().nth(line)?.1))));
        let points: Vec<_> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let dash = if line + 1 == COLOURS.len() { " stroke-dasharray=\"5 3\"" } else { "" };
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
            points.join(" ")
        );
    }
    text.push_str("</g>\n");
}

fn legend(text: &mut String, rows: &[Row]) {
    let Some(row) = rows.first() else { return };
    for ((line, (name, _)), colour) in row.lines().enumerate().zip(COLOURS) {
        let (x, y) = (LEFT + STEP * (line % 3) as f64, TOP + SIZE.1 + 42.0 + 20.0 * (line / 3) as f64);
        let _ = writeln!(text, "<path d=\"M{x} {y}h22\" stroke=\"{colour}\" stroke-width=\"3\"/>");
        let _ = writeln!(text, "<text x=\"{}\" y=\"{}\">{name}</text>", x + 28.0, y + 4.0);
    }
    let _ = writeln!(text, "<text x=\"{LEFT}\" y=\"{}\">executions, over CPUs</text>", TOP - 24.0);
}
