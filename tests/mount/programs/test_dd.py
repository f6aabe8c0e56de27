"""dd on main/, with each of its conversions and flags: as on a disk."""

import pytest

from tests.mount.twins import Twins

pytestmark = pytest.mark.mount

INPUT = """
try() { dd "$@" bs=4k status=none; echo "$* $?"; }
seq 1 20000 > in
head -c 5000 /dev/zero > z; head -c 100000 in >> z; head -c 100000 /dev/zero >> z; echo end >> z
"""


def test_dd_with_each_conversion_gives_the_bytes_of_a_disk(everywhere: Twins) -> None:
    everywhere.same(
        INPUT
        + """
        for c in ascii ebcdic ibm lcase ucase swab; do try if=in of=c-$c conv=$c; done
        dd if=in of=c-block conv=block cbs=80 bs=3000 status=none
        dd if=in of=c-unblock conv=unblock cbs=80 bs=3000 status=none
        for c in sync noerror fdatasync fsync; do try if=in of=c-$c conv=$c; done
        dd if=z of=sparse conv=sparse bs=4096 status=none
        cmp z sparse
        dd if=z of=sparse conv=sparse,notrunc bs=4096 seek=3 status=none
        dd if=in of=excl conv=excl status=none
        dd if=z of=excl conv=excl status=none
        dd if=in of=absent conv=nocreat status=none
        dd if=z of=excl conv=nocreat status=none
        cmp z excl
        cat in | dd of=piped ibs=100 obs=4000 conv=block cbs=40 status=none
        md5sum *
        """
    )


def test_dd_with_each_flag_gives_the_bytes_of_a_disk(everywhere: Twins) -> None:
    everywhere.same(
        INPUT
        + """
        flags='direct dsync sync nonblock noctty nofollow nocache noatime'
        for f in append $flags; do try if=in of=o-$f oflag=$f; done
        for f in fullblock $flags; do try if=z iflag=$f of=i-$f; cmp z i-$f; done
        dd if=in of=o-directory oflag=directory status=none
        dd if=in of=o-append oflag=append conv=notrunc bs=4096 status=none
        dd if=in of=o-append oflag=append,dsync conv=notrunc bs=512 count=9 status=none
        dd if=in of=o-direct oflag=direct bs=4096 count=5 conv=notrunc seek=2 status=none
        dd if=in of=tail oflag=direct bs=512 count=5 status=none
        dd if=in of=large oflag=direct bs=1M status=none
        dd if=in of=in oflag=append conv=notrunc bs=1000 count=2 status=none
        md5sum *
        """
    )


def test_dd_seeks_and_skips_as_on_a_disk(everywhere: Twins) -> None:
    everywhere.same(
        INPUT
        + """
        dd if=in of=f bs=1000 seek=7 skip=3 count=5 status=none
        md5sum f
        dd if=z of=f bs=1000 seek=4 conv=notrunc count=1 status=none
        md5sum f
        dd if=z of=f bs=1000 seek=4 count=1 status=none
        md5sum f
        dd if=z of=f bs=1000 seek=40 count=0 status=none
        md5sum f
        b='oflag=seek_bytes iflag=skip_bytes,count_bytes'
        dd if=in of=f $b seek=1234 skip=77 count=4321 bs=512 status=none
        md5sum f
        dd if=/dev/zero of=f bs=1 count=0 seek=3M status=none
        md5sum f
        dd if=in of=/dev/stdout bs=1M status=none > f
        dd if=in bs=1000 status=none >> f
        dd if=in bs=1000 seek=5 conv=notrunc status=none 1<> f
        md5sum f
        dd if=absent of=never status=none
        dd if=in of=absent/x status=none
        dd if=in of=. status=none
        ls -A
        """
    )
