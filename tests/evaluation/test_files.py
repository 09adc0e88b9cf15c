from evaluation.files import unique_file_names


def test_images_of_one_name_have_different_file_names() -> None:
    names = unique_file_names(["a/scan.png", "b/scan.png", "scan.dcm#3", "scan.png", "scan.png"])
    assert names == ["a-scan", "b-scan", "scan-3", "scan", "scan-2"]
    names = unique_file_names(["scan.png", "scan.png", "scan-2.png", "scan.png", "scan-2.png"])
    assert names == ["scan", "scan-2", "scan-2-2", "scan-3", "scan-2-3"]
