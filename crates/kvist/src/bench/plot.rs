//! Lines over logarithmic axes, as SVG.

/// A line: its name and (x, y), both positive.
pub struct Line {
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
}

/// Axes with lines. The panels of a plot lie side by side and have the same axes.
pub struct Panel {
    pub title: String,
    pub lines: Vec<Line>,
}

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 44.0;
const BELOW: f64 = 46.0;
const COLOURS: [&str; 4] = ["#0b6", "#c33", "#777", "#36c"];

/// Where the numbers of an axis lie.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// Of positive numbers, widened to whole powers of `base`.
    fn new(numbers: impl Iterator<Item = f64>, base: f64, from: f64, to: f64) -> Axis {
        let (low, high) = numbers.fold((f64::INFINITY, 0.0_f64), |(a, b), x| (a.min(x), b.max(x)));
        let (low, high) = (low.log(base).floor(), high.log(base).ceil().max(low.log(base).floor() + 1.0));
        Axis { low: base.powf(low), high: base.powf(high), from, to }
    }

    fn at(&self, x: f64) -> f64 {
        self.from + (self.to - self.from) * (x / self.low).ln() / (self.high / self.low).ln()
    }

    fn ticks(&self, base: f64) -> impl Iterator<Item = f64> {
        let (low, high) = (self.low, self.high * 1.001);
        (0..64).map(move |i| low * base.powi(i)).take_while(move |&x| x <= high)
    }
}

/// The whole picture; the legend stands in the first panel.
pub fn svg(panels: &[Panel], x_label: &str, y_label: &str) -> String {
    let points = || panels.iter().flat_map(|panel| panel.lines.iter().flat_map(|line| line.points.iter().copied()));
    let (right, bottom) = (WIDTH - 12.0, HEIGHT - BELOW);
    let x = Axis::new(points().map(|p| p.0), 2.0, LEFT, right);
    let y = Axis::new(points().map(|p| p.1), 10.0, bottom, TOP);
    let total = WIDTH * panels.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {total} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"{total}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    for (i, panel) in panels.iter().enumerate() {
        out += &format!("<g transform=\"translate({} 0)\">\n", WIDTH * i as f64);
        let text = |x: f64, y: f64, anchor: &str, text: &str| {
            format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n", escaped(text))
        };
        let line = |a: (f64, f64), b: (f64, f64)| {
            format!("<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#ddd\"/>\n", a.0, a.1, b.0, b.1)
        };
        for tick in x.ticks(2.0) {
            out += &line((x.at(tick), TOP), (x.at(tick), bottom));
            out += &text(x.at(tick), bottom + 15.0, "middle", &tick.to_string());
        }
        for tick in y.ticks(10.0) {
            out += &line((LEFT, y.at(tick)), (right, y.at(tick)));
            out += &text(LEFT - 5.0, y.at(tick) + 4.0, "end", &format!("{}", (tick * 1e6).round() / 1e6));
        }
        out += &text((LEFT + right) / 2.0, HEIGHT - 10.0, "middle", x_label);
        out += &text(LEFT, 18.0, "start", &format!("{}: {y_label}", panel.title));
        for (j, line) in panel.lines.iter().enumerate() {
            let colour = COLOURS[j % COLOURS.len()];
            let path: Vec<String> =
                line.points.iter().map(|&(a, b)| format!("{:.1},{:.1}", x.at(a), y.at(b))).collect();
            out += &format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
                path.join(" ")
            );
            let name = text(LEFT + 8.0 + 80.0 * j as f64, 35.0, "start", line.name);
            out += &name.replacen("<text", &format!("<text fill=\"{colour}\""), 1);
        }
        out += "</g>\n";
    }
    out + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_where_their_numbers_say() {
        let line = |name, points: &[(f64, f64)]| Line { name, points: points.to_vec() };
        let lines = vec![line("a", &[(1.0, 0.01), (4.0, 1.0)]), line("b", &[(2.0, 0.1)])];
        let picture = svg(&[Panel { title: "x < y".into(), lines }], "x", "y");
        // The corners, and the middle of both logarithmic axes.
        let (right, bottom) = (WIDTH - 12.0, HEIGHT - BELOW);
        assert!(picture.contains(&format!("points=\"{LEFT:.1},{bottom:.1} {right:.1},{TOP:.1}\"")), "{picture}");
        assert!(picture.contains(&format!("points=\"{:.1},{:.1}\"", (LEFT + right) / 2.0, (TOP + bottom) / 2.0)));
        assert!(picture.contains("x &lt; y: y") && picture.matches("<polyline").count() == 2);
        assert!(picture.contains(">0.01</text>") && picture.contains(">4</text>"));
    }

    #[test]
    fn one_point_has_axes_too() {
        let line = Line { name: "a", points: vec![(3.0, 5.0)] };
        let picture = svg(&[Panel { title: String::new(), lines: vec![line] }], "x", "y");
        assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
    }
}
