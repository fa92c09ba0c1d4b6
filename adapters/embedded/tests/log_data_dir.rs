//! Whose a data directory is.

use std::fs;

use herald_core::topic::Layout;
use herald_embedded::data_dir::{DEFAULT_LAYOUT, DataDir, DataDirError, FORMAT_VERSION, Settings};

fn settings(layout: Option<Layout>) -> Settings {
    Settings { layout, region: "eu".to_owned() }
}

#[test]
fn a_new_directory_keeps_what_it_was_made_with() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("new/data");
    let layout = Layout { shards: 8, requests: 3, receipts: 2 };
    let identity = DataDir::open(&path, &settings(Some(layout)), 77).unwrap().identity().clone();
    assert_eq!((identity.layout, identity.epoch, identity.region.as_str()), (layout, 1, "eu"));
    let again = DataDir::open(&path, &settings(None), 99).unwrap();
    assert_eq!((again.identity(), again.created_ms()), (&identity, 77));
    drop(again);
    assert_eq!(DataDir::open_existing(&path).unwrap().identity(), &identity);
    let absent = parent.path().join("nothing");
    assert!(matches!(DataDir::open_existing(&absent), Err(DataDirError::Absent(_))));
    assert!(!absent.exists(), "looking makes nothing");
    let other = tempfile::tempdir().unwrap();
    assert_eq!(DataDir::open(other.path(), &settings(None), 0).unwrap().identity().layout, DEFAULT_LAYOUT);
}

#[test]
fn another_layout_or_region_is_refused_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    DataDir::open(directory.path(), &settings(None), 0).unwrap();
    let error =
        DataDir::open(directory.path(), &settings(Some(Layout { shards: 32, ..DEFAULT_LAYOUT })), 0).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, DataDirError::OtherLayout { .. }));
    assert!(text.contains("shards: 16") && text.contains("shards: 32") && text.contains("new directory"), "{text}");
    let moved = Settings { layout: None, region: "us".to_owned() };
    assert!(matches!(DataDir::open(directory.path(), &moved, 0), Err(DataDirError::OtherRegion { .. })));
    let nonsense = settings(Some(Layout { shards: 65, ..DEFAULT_LAYOUT }));
    assert!(matches!(DataDir::open(directory.path(), &nonsense, 0), Err(DataDirError::BadLayout(_))));
}

#[test]
fn a_second_process_is_refused_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let first = DataDir::open(directory.path(), &settings(None), 0).unwrap();
    let error = DataDir::open(directory.path(), &settings(None), 0).unwrap_err();
    assert!(matches!(error, DataDirError::InUse(_)));
    assert!(error.to_string().contains(&directory.path().display().to_string()), "{error}");
    drop(first);
    DataDir::open(directory.path(), &settings(None), 0).unwrap();
}

#[test]
fn what_is_not_heralds_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("thesis.txt"), "precious").unwrap();
    let error = DataDir::open(directory.path(), &settings(None), 0).unwrap_err();
    assert!(error.to_string().contains("thesis.txt"), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_directory_of_an_older_format_is_raised_unless_it_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let made = DataDir::open(directory.path(), &settings(None), 0).unwrap();
    let name = directory.path().join("herald.json");
    let present = fs::read_to_string(&name).unwrap();
    let old = present.replace(&format!("\"format_version\": {FORMAT_VERSION}"), "\"format_version\": 1");
    assert_ne!(old, present);
    drop(made);
    let elsewhere = Settings { region: "elsewhere".to_owned(), ..settings(None) };
    fs::write(&name, &old).unwrap();
    assert!(DataDir::open(directory.path(), &elsewhere, 0).is_err());
    assert_eq!(fs::read_to_string(&name).unwrap(), old);
    let opened = DataDir::open(directory.path(), &settings(None), 0).unwrap();
    assert_eq!(
        (opened.description().format_version, fs::read_to_string(&name).unwrap()),
        (FORMAT_VERSION, present.clone())
    );
    drop(opened);
    fs::write(&name, &old).unwrap();
    DataDir::open_existing(directory.path()).unwrap();
    assert_eq!(fs::read_to_string(&name).unwrap(), present);
}

#[test]
fn a_newer_or_damaged_description_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    DataDir::open(directory.path(), &settings(None), 0).unwrap();
    let name = directory.path().join("herald.json");
    fs::write(&name, r#"{"format_version": 3, "something": "new"}"#).unwrap();
    let error = DataDir::open(directory.path(), &settings(None), 0).unwrap_err();
    assert!(matches!(error, DataDirError::NewerFormat { found: 3, .. }), "{error}");
    fs::write(&name, "{").unwrap();
    assert!(matches!(DataDir::open(directory.path(), &settings(None), 0), Err(DataDirError::Damaged { .. })));
    // A power cut between the lock and the description leaves a directory that can be begun again.
    fs::remove_file(&name).unwrap();
    fs::write(directory.path().join("herald.json.new"), "{").unwrap();
    DataDir::open(directory.path(), &settings(None), 0).unwrap();
}
