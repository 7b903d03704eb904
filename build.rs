//! Detections and sample data are compiled into the program: a change to them is a change to it.

fn main() {
    println!("cargo::rerun-if-changed=detections");
    println!("cargo::rerun-if-changed=sample-data");
}
