from router_ml.rotation import Rotation


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_each_address_is_first_in_its_turn():
    rotation = Rotation(3)
    assert [rotation.order() for _ in range(4)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]


def test_an_address_that_failed_comes_last_for_a_while():
    clock = Clock()
    rotation = Rotation(3, clock)
    rotation.failed(1)
    assert [rotation.order() for _ in range(3)] == [[0, 2, 1], [2, 0, 1], [2, 0, 1]]
    clock.now = 0.11
    assert [rotation.order()[0] for _ in range(3)] == [0, 1, 2]


def test_it_is_shunned_longer_each_time_in_a_row_up_to_two_seconds():
    clock = Clock()
    rotation = Rotation(2, clock)

    def shunned_for():
        start = clock.now
        rotation.failed(0)
        while all(rotation.order()[0] == 1 for _ in range(2)):
            clock.now += 0.05
        return round(clock.now - start, 1)

    assert [shunned_for() for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    rotation.answered(0)
    assert shunned_for() == 0.1


def test_when_all_failed_they_take_turns_as_before():
    rotation = Rotation(2)
    rotation.failed(0)
    rotation.failed(1)
    assert [rotation.order() for _ in range(2)] == [[0, 1], [1, 0]]
