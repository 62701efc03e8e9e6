from fedmq.studies.sweep.machine_limits import cores, free_bytes


def test_a_containers_limit_counts_where_there_is_one(tmp_path):
    machine = free_bytes(tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert free_bytes(tmp_path) == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(tmp_path) > machine / 2
    assert cores() >= 1
