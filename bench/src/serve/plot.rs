//! Small figures as SVG: latencies by percentile, and what came when.
use std::fmt::Write;

use hdrhistogram::Histogram;

/// One curve of latencies (microseconds) by percentile for each histogram, the axis stretched by the nines.
pub(crate) fn percentiles<'a>(
    title: &str,
    histograms: impl Iterator<Item = (&'static str, &'a Histogram<u64>)>,
) -> String {
    let mut series = Vec::new();
    let mut nines_max = 1.0_f64;
    for (name, histogram) in histograms.filter(|(_, histogram)| !histogram.is_empty()) {
        let mut points = Vec::new();
        for step in histogram.iter_quantiles(TICKS_PER_HALF) {
            let quantile = step.quantile_iterated_to();
            // The last value stands where its own share of all begins.
            let rest = if quantile < 1.0 { 1.0 - quantile } else { 1.0 / histogram.len() as f64 };
            points.push((-rest.log10(), step.value_iterated_to().max(1) as f64 / 1e3));
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        nines_max = points.iter().fold(nines_max, |max, point| max.max(point.0));
        series.push(Series { name: name.replace('_', " "), points, dots: false });
    }
    let nines = (0..=nines_max.ceil() as usize).map(|nines| {
        let label = match nines {
            0 => "0 %".to_owned(),
            1 => "90 %".to_owned(),
            2 => "99 %".to_owned(),
            more => format!("99.{} %", "9".repeat(more - 2)),
        };
        (nines as f64, label)
    });
    let x = Axis { label: "percentile".to_owned(), from: 0.0, to: nines_max, ticks: nines.collect() };
    Figure { title: title.to_owned(), x, bands: Vec::new(), series }.to_svg()
}

/// Dots at (seconds, milliseconds), a colour for each series; times that stand out are shaded.
pub(crate) fn times(title: &str, series: Vec<Series>, bands: Vec<(f64, f64)>) -> String {
    let to = series.iter().flat_map(|series| &series.points).fold(0.1_f64, |max, point| max.max(point.0));
    let step = decimal_step(to / 8.0);
    let ticks = (0..=(to / step) as usize).map(|i| (i as f64 * step, format!("{}", i as f64 * step)));
    let x = Axis { label: "seconds".to_owned(), from: 0.0, to, ticks: ticks.collect() };
    Figure { title: title.to_owned(), x, bands, series }.to_svg()
}

/// Milliseconds over whatever the horizontal axis counts.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// Points by themselves, not a line.
    pub(crate) dots: bool,
}

struct Axis {
    label: String,
    from: f64,
    to: f64,
    ticks: Vec<(f64, String)>,
}

struct Figure {
    title: String,
    x: Axis,
    bands: Vec<(f64, f64)>,
    series: Vec<Series>,
}

impl Figure {
    fn to_svg(&self) -> String {
        let y = self.y();
        let at_x = |x: f64| LEFT + (x - self.x.from) / (self.x.to - self.x.from) * (WIDTH - LEFT - RIGHT);
        let at_y = |ms: f64| HEIGHT - BOTTOM - (ms.log10() - y.from) / (y.to - y.from) * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
             <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
            escaped(&self.title)
        );
        let (bottom, right, middle) = (HEIGHT - BOTTOM, WIDTH - RIGHT, (WIDTH + LEFT) / 2.0);
        for (from, to) in &self.bands {
            let (from, to) = (at_x(*from), at_x(to.min(self.x.to)));
            let (width, height) = ((to - from).max(1.0), bottom - TOP);
            let _ = writeln!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\" fill=\"#eee\"/>"
            );
        }
        for (value, label) in self.x.ticks.iter().filter(|(value, _)| *value <= self.x.to) {
            let x = at_x(*value);
            let below = bottom + 16.0;
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/>\
                 <text x=\"{x:.1}\" y=\"{below}\" text-anchor=\"middle\">{label}</text>"
            );
        }
        for (value, label) in &y.ticks {
            let (at, left) = (at_y(10_f64.powf(*value)), LEFT - 6.0);
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/>\
                 <text x=\"{left}\" y=\"{at:.1}\" text-anchor=\"end\" dy=\"4\">{label}</text>"
            );
        }
        let (low, label) = (HEIGHT - 8.0, escaped(&self.x.label));
        let _ = writeln!(svg, "<text x=\"{middle}\" y=\"{low}\" text-anchor=\"middle\">{label}</text>");
        let _ = writeln!(svg, "<text x=\"8\" y=\"{TOP}\" dy=\"-6\">{}</text>", y.label);
        for (i, series) in self.series.iter().enumerate() {
            let (colour, down) = (COLOURS[i % COLOURS.len()], TOP + 16.0 * (i as f64 + 1.0));
            let points = series.points.iter().map(|(x, ms)| (at_x(*x), at_y(ms.max(MS_MIN))));
            // A dot is a line of no length with round ends: the shortest way to say thousands of them.
            let (joint, width) = if series.dots { ("h0M", 2.4) } else { ("L", 1.5) };
            let path: Vec<String> = points.map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
            let (path, end) = (path.join(joint), if series.dots { "h0" } else { "" });
            let _ = write!(
                svg,
                "<path d=\"M{path}{end}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
                 stroke-linecap=\"round\"/>"
            );
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{down}\" fill=\"{colour}\">{}</text>",
                LEFT + 10.0,
                escaped(&series.name)
            );
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// Powers of ten around all values.
    fn y(&self) -> Axis {
        let values = self.series.iter().flat_map(|series| &series.points).map(|point| point.1.max(MS_MIN));
        let (min, max) = values.fold((1.0_f64, 1.0_f64), |(min, max), ms| (min.min(ms), max.max(ms)));
        let (from, to) = (min.log10().floor(), max.log10().ceil().max(min.log10().floor() + 1.0));
        let powers = from as i32..=to as i32;
        let ticks = powers.map(|power| (f64::from(power), format!("{}", 10_f64.powi(power)))).collect();
        Axis { label: "ms".to_owned(), from, to, ticks }
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn decimal_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= least).unwrap_or(10.0 * power)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

const TICKS_PER_HALF: u32 = 10;
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 44.0;
const MS_MIN: f64 = 1e-3;
const COLOURS: [&str; 5] = ["#1b6ca8", "#c0392b", "#1e8449", "#7d3c98", "#b9770e"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_rise_to_the_maximum_at_the_right() {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000, 3).unwrap();
        (1..=1000).for_each(|ms| histogram.record(ms * 1000).unwrap());
        let svg = percentiles("a < b", [("end_to_end", &histogram)].into_iter());
        assert!(svg.contains("a &lt; b") && svg.contains(">99.9 %<") && svg.contains(">end to end<"), "{svg}");
        let curve = svg.rsplit("<path d=\"M").next().unwrap().split('"').next().unwrap();
        let points: Vec<(f64, f64)> = curve
            .split('L')
            .map(|pair| pair.split_once(' ').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap())
            .collect();
        assert!(points.is_sorted_by(|a, b| a.0 <= b.0 && a.1 >= b.1), "{points:?}");
        assert!((points.last().unwrap().0 - (WIDTH - RIGHT)).abs() < 0.1);
    }

    #[test]
    fn dots_and_bands_are_where_their_times_are() {
        let series = Series { name: "itl".to_owned(), points: vec![(0.0, 10.0), (4.0, 20.0)], dots: true };
        let svg = times("t", vec![series], vec![(1.0, 2.0)]);
        assert_eq!(svg.matches("h0").count(), 2);
        assert!(svg.contains("<rect x=\"237.5\" y=\"40\" width=\"177.5\""), "{svg}");
    }
}
