//! Who made whom, and who called whom, drawn from left to right.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::html::plain;
use super::{Dossier, moment};

const COLUMN: f64 = 260.0;
const ROW: f64 = 42.0;
const NODE: (f64, f64) = (200.0, 32.0);
/// Letters that fit a node.
const LETTERS: usize = 27;

struct Node {
    name: String,
    note: String,
    own: bool,
    column: i64,
}

/// Nodes in columns, and links between them by number.
#[derive(Default)]
struct Graph {
    nodes: Vec<Node>,
    links: Vec<(usize, usize, String)>,
}

impl Graph {
    fn number(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Orders each column by what its nodes hang on, so that few links cross.
    fn places(&self) -> (Vec<(f64, f64)>, f64, f64) {
        let mut columns: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        for (number, node) in self.nodes.iter().enumerate() {
            columns.entry(node.column).or_default().push(number);
        }
        let tallest = columns.values().map(Vec::len).max().unwrap_or(1);
        let height = tallest as f64 * ROW + 26.0;
        let mut places = vec![(0.0, 0.0); self.nodes.len()];
        for (index, members) in columns.values_mut().enumerate() {
            let hangs_at = |number: &usize| {
                let heights = self.links.iter().filter(|(from, to, _)| to == number && self.nodes[*from].column < self.nodes[*number].column);
                heights.map(|(from, ..)| places[*from].1).fold(None, |lowest: Option<f64>, y| Some(lowest.map_or(y, |lowest| lowest.min(y))))
            };
            let mut keyed: Vec<(Option<f64>, usize)> = members.iter().map(|number| (hangs_at(number), *number)).collect();
            keyed.sort_by(|a, b| a.0.unwrap_or(f64::MAX).total_cmp(&b.0.unwrap_or(f64::MAX)).then(a.1.cmp(&b.1)));
            let top = (height - 20.0 - keyed.len() as f64 * ROW) / 2.0;
            for (row, (_, number)) in keyed.into_iter().enumerate() {
                places[number] = (index as f64 * COLUMN + 6.0, top + row as f64 * ROW + 4.0);
            }
        }
        (places, columns.len() as f64 * COLUMN - (COLUMN - NODE.0) + 12.0, height)
    }

    fn draw(&self, label: &str) -> String {
        let (places, width, height) = self.places();
        let mut svg = format!(
            "<div class=\"scroll\"><svg class=\"tree\" viewBox=\"0 0 {width} {height}\" style=\"width:{width}px\" role=\"img\" aria-label=\"{label}\">"
        );
        for (from, to, times) in &self.links {
            let ((ax, ay), (bx, by)) = (places[*from], places[*to]);
            let (ay, by) = (ay + NODE.1 / 2.0, by + NODE.1 / 2.0);
            if ax < bx {
                let (ax, bend) = (ax + NODE.0, (bx - ax - NODE.0) / 2.0);
                let _ = write!(svg, "<path class=\"link\" d=\"M{ax} {ay} C{} {ay} {} {by} {bx} {by}\"/>", ax + bend, bx - bend);
                let _ = write!(svg, "<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", bx - 4.0, by - 4.0, plain(times));
            } else {
                // Back to where it came from: below the nodes, dashed.
                let (ax, bx) = (ax + NODE.0 / 2.0, bx + NODE.0 / 2.0);
                let (ay, by) = (ay + NODE.1 / 2.0, by + NODE.1 / 2.0);
                let low = ay.max(by) + 16.0;
                let _ = write!(svg, "<path class=\"link back\" d=\"M{ax} {ay} C{ax} {low} {bx} {low} {bx} {by}\"/>");
            }
        }
        for (node, (x, y)) in self.nodes.iter().zip(&places) {
            let shown: String = match node.name.chars().count() {
                length if length > LETTERS => format!("…{}", node.name.chars().skip(length + 1 - LETTERS).collect::<String>()),
                _ => node.name.clone(),
            };
            let _ = write!(
                svg,
                "<g><title>{0}</title><rect class=\"node{1}\" x=\"{x}\" y=\"{y}\" width=\"{2}\" height=\"{3}\" rx=\"6\"/><text x=\"{4}\" y=\"{5}\">{6}</text><text class=\"tick\" x=\"{4}\" y=\"{7}\">{8}</text></g>",
                plain(&node.name),
                if node.own { " own" } else { "" },
                NODE.0,
                NODE.1,
                x + 8.0,
                if node.note.is_empty() { y + 20.0 } else { y + 14.0 },
                plain(&shown),
                y + 27.0,
                plain(&node.note)
            );
        }
        svg.push_str("</svg></div>");
        svg
    }
}

/// What a credential was minted from to the left, what was minted from it to the right.
pub fn lineage(dossier: &Dossier) -> String {
    let sheet = &dossier.lineage.sheet;
    let mut graph = Graph { nodes: vec![Node { name: dossier.name.clone(), note: "this one".into(), own: true, column: 0 }], links: Vec::new() };
    for row in 0..sheet.rows.len() {
        let depth = sheet.number(row, "depth");
        let column = if sheet.cell(row, "relation") == Some("ancestor") { -depth } else { depth };
        let note = sheet.time(row, "minted_at").map_or_else(String::new, |time| format!("minted {}", moment(time)));
        graph.nodes.push(Node { name: sheet.cell(row, "credential").unwrap_or("?").to_owned(), note, own: false, column });
    }
    let made_by = (0..sheet.rows.len()).map(|row| (sheet.cell(row, "credential"), sheet.cell(row, "parent")));
    let own = (0..sheet.rows.len()).find(|row| sheet.cell(*row, "relation") == Some("ancestor") && sheet.number(*row, "depth") == 1);
    let own = own.map(|row| (Some(dossier.name.as_str()), sheet.cell(row, "credential")));
    for (child, parent) in made_by.chain(own) {
        if let (Some(child), Some(parent)) = (child.and_then(|name| graph.number(name)), parent.and_then(|name| graph.number(name))) {
            graph.links.push((parent, child, String::new()));
        }
    }
    graph.draw("lineage")
}

/// Agents from left to right in the order in which they call each other.
pub fn delegation(dossier: &Dossier) -> Option<String> {
    let sheet = &dossier.delegation.as_ref()?.sheet;
    let mut graph = Graph::default();
    let node = |graph: &mut Graph, name: &str, note: String| match graph.number(name) {
        Some(number) => number,
        None => {
            graph.nodes.push(Node { name: name.to_owned(), note, own: name == dossier.name, column: i64::MAX });
            graph.nodes.len() - 1
        }
    };
    for row in 0..sheet.rows.len() {
        let (caller, Some(agent)) = (sheet.cell(row, "caller"), sheet.cell(row, "agent")) else { continue };
        let acts_as = sheet.cell(row, "identities").map_or_else(String::new, |identity| format!("as {}", identity.rsplit('/').next().unwrap_or(identity)));
        let agent = node(&mut graph, agent, acts_as.chars().take(LETTERS).collect());
        if let Some(caller) = caller {
            let caller = node(&mut graph, caller, String::new());
            let times = sheet.number(row, "times");
            graph.links.push((caller, agent, if times > 1 { format!("×{times}") } else { String::new() }));
        }
    }
    if graph.nodes.is_empty() {
        return None;
    }
    // From those that nobody calls; where all are called, from the first that there is.
    let mut edge: Vec<usize> = (0..graph.nodes.len()).filter(|number| !graph.links.iter().any(|(from, to, _)| to == number && from != to)).collect();
    let mut column = 0;
    loop {
        if edge.is_empty() {
            let Some(next) = graph.nodes.iter().position(|node| node.column == i64::MAX) else { break };
            (edge, column) = (vec![next], 0);
        }
        edge.iter().for_each(|number| graph.nodes[*number].column = column);
        column += 1;
        let next = graph.links.iter().filter(|(from, to, _)| edge.contains(from) && graph.nodes[*to].column == i64::MAX).map(|(_, to, _)| *to);
        edge = next.collect();
        edge.sort_unstable();
        edge.dedup();
    }
    Some(graph.draw("delegation"))
}
