//! The report as one page without anything to load: a bar per competitor and figure.

use std::fmt::Write as _;

use crate::attaching::{self, Attaching, Verb};
use crate::competitor::{BASE, WEFT};
use crate::datapath::Scenario;
use crate::figure::{Better, FIGURES, Figure, Ratio, Verdict};
use crate::report::{Report, number};
use crate::stats;

/// Sizes in pixels.
const ROW: usize = 22;
const LABEL: usize = 150;
const BARS: usize = 420;
const WIDTH: usize = LABEL + BARS + 190;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#1b1f24;background:#fff}\
    h3{font-size:1em;margin:1.4em 0 .2em}small{color:#57606a;font-weight:normal}svg{max-width:100%;height:auto}\
    svg text{font:13px system-ui,sans-serif;fill:#1b1f24}pre{white-space:pre-wrap;font-size:12px}\
    .bar{fill:#8c959f}.weft{fill:#0969da}.hidden{fill-opacity:.3}.range{stroke:#1b1f24}.one{stroke:#57606a;stroke-dasharray:3 3}\
    @media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}svg text{fill:#e6edf3}.range{stroke:#e6edf3}}";

/// The bar of one competitor.
struct Bar<'a> {
    name: &'a str,
    median: f64,
    /// Absent for the base.
    ratio: Option<Ratio>,
}

pub(crate) fn page(report: &Report) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Pod networks side by side</title><style>{STYLE}</style>\n<h1>Pod networks side by side</h1>\n\
         <p>Bars are ratios to <code>{BASE}</code> in the same round, the dashed line is 1; the thin line reaches from the \
         smallest to the largest, a fifth of the rounds left out at either end. Pale: the spread hides the ratio. Among thousands of nodes, \
         ratios are to the same competitor among two.</p>\n"
    );
    for scenario in Scenario::ALL {
        let charts: String = FIGURES
            .iter()
            .filter_map(|figure| chart(report, scenario, figure))
            .collect();
        if !charts.is_empty() {
            let _ = write!(out, "<h2>{}</h2>\n{charts}", escape(scenario.title()));
        }
    }
    out += &attaching_pods(report);
    let _ = writeln!(
        out,
        "<h2>All figures</h2>\n<pre>{}</pre>\n</html>",
        escape(&report.tables())
    );
    out
}

fn chart(report: &Report, scenario: Scenario, figure: &Figure) -> Option<String> {
    let bars: Vec<Bar<'_>> = report
        .meta
        .competitors
        .iter()
        .filter_map(|(name, _)| {
            let values = figure.values(&report.samples, scenario, name);
            let known: Vec<f64> = values.iter().copied().flatten().collect();
            let (other, base) = scenario.base(name);
            let of_base = || Ratio::of(&values, &figure.values(&report.samples, other, base));
            Some(Bar {
                name,
                median: stats::median(&known)?,
                ratio: if (other, base) == (scenario, name.as_str()) {
                    None
                } else {
                    Some(of_base()?)
                },
            })
        })
        .collect();
    let longest = bars
        .iter()
        .filter_map(|bar| Some(bar.ratio?.most))
        .fold(1.0, f64::max);
    let better = match figure.better {
        Better::Less => "less is better",
        Better::More => "more is better",
    };
    let mut svg = String::new();
    for (row, bar) in bars.iter().enumerate() {
        let ratio = bar.ratio.map_or(1.0, |ratio| ratio.median);
        let said = match bar.ratio.map(Ratio::verdict) {
            None => String::new(),
            Some(Verdict::Told(median)) => format!(" ×{median:.2}"),
            Some(Verdict::Alike) => " ≈".into(),
            Some(Verdict::Hidden) => " ?".into(),
        };
        let text = format!("{}{said}", number(bar.median));
        let hidden = bar.ratio.is_some_and(|ratio| ratio.verdict() == Verdict::Hidden);
        let range = bar.ratio.map(|ratio| (ratio.least, ratio.most));
        svg += &line(
            row,
            bar.name,
            ratio / longest,
            range.map(|(a, b)| (a / longest, b / longest)),
            hidden,
            &text,
        );
    }
    let one = LABEL as f64 + BARS as f64 / longest;
    let height = bars.len() * ROW;
    let _ = write!(
        svg,
        "<line class=\"one\" x1=\"{one:.0}\" x2=\"{one:.0}\" y1=\"0\" y2=\"{height}\"/>"
    );
    let title = format!(
        "{}, {} <small>{better}</small>",
        escape(figure.title),
        escape(figure.unit)
    );
    (!bars.is_empty()).then(|| framed(&title, height, &svg))
}

/// ADD and DEL, one by one and together.
fn attaching_pods(report: &Report) -> String {
    let all = Attaching::all(&report.cni);
    let mut out = String::new();
    for calls in attaching::counts(&report.cni) {
        let title = match calls {
            1 => "one by one".to_owned(),
            calls => format!("{calls} at a time"),
        };
        let these: Vec<(&str, f64, f64)> = all
            .iter()
            .filter_map(|one| {
                let [add, del] = [Verb::Add, Verb::Del].map(|verb| one.median(calls, verb));
                Some((one.name, add?, del?))
            })
            .collect();
        let longest = these
            .iter()
            .map(|(_, add, del)| add.max(*del))
            .fold(f64::MIN_POSITIVE, f64::max);
        let mut svg = String::new();
        for (index, (name, add, del)) in these.iter().enumerate() {
            svg += &line(
                2 * index,
                name,
                add / longest,
                None,
                false,
                &format!("ADD {}", number(*add)),
            );
            svg += &line(
                2 * index + 1,
                "",
                del / longest,
                None,
                false,
                &format!("DEL {}", number(*del)),
            );
        }
        let title = format!("ADD and DEL, {title}, p50, ms <small>less is better</small>");
        out += &framed(&title, 2 * these.len() * ROW, &svg);
    }
    match out.is_empty() {
        true => out,
        false => format!("<h2>attaching pods</h2>\n{out}"),
    }
}

/// One bar, its length a share of the longest.
fn line(row: usize, name: &str, share: f64, range: Option<(f64, f64)>, hidden: bool, text: &str) -> String {
    let y = row * ROW;
    let at = |share: f64| LABEL as f64 + share * BARS as f64;
    let kind = if name.starts_with(WEFT) { " weft" } else { "" };
    let pale = if hidden { " hidden" } else { "" };
    let end = range.map_or(share, |(_, most)| most.max(share));
    let mut out = format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
         <rect class=\"bar{kind}{pale}\" x=\"{LABEL}\" y=\"{}\" width=\"{:.1}\" height=\"{}\"/>\
         <text x=\"{:.1}\" y=\"{}\">{}</text>",
        LABEL - 8,
        y + 16,
        escape(name),
        y + 3,
        share * BARS as f64,
        ROW - 6,
        at(end) + 8.0,
        y + 16,
        escape(text),
    );
    if let Some((least, most)) = range {
        let middle = y + ROW / 2;
        let _ = write!(
            out,
            "<line class=\"range\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>",
            at(least),
            at(most)
        );
    }
    out
}

fn framed(title: &str, height: usize, svg: &str) -> String {
    format!(
        "<h3>{title}</h3>\n<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">{svg}</svg>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_share_and_names_are_escaped() {
        let bar = line(1, "weft<", 0.5, Some((0.25, 0.75)), false, "7");
        assert!(bar.contains("width=\"210.0\""), "{bar}");
        assert!(
            bar.contains("class=\"bar weft\"") && bar.contains("weft&lt;"),
            "{bar}"
        );
        assert!(bar.contains("x1=\"255.0\" x2=\"465.0\""), "{bar}");
        assert!(line(0, "other", 1.0, None, true, "").contains("class=\"bar hidden\""));
    }
}
