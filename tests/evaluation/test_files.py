from evaluation.files import file_names


def test_pictures_of_one_name_do_not_overwrite_each_other() -> None:
    names = file_names(["a/scan.png", "b/scan.png", "scan.dcm#3", "scan.png", "scan.png"])
    assert names == ["a-scan", "b-scan", "scan-3", "scan", "scan-2"]
    names = file_names(["scan.png", "scan.png", "scan-2.png", "scan.png", "scan-2.png"])
    assert names == ["scan", "scan-2", "scan-2-2", "scan-3", "scan-2-3"]
