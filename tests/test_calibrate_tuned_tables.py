"""Tables of tuned kernels become measurement tables; wrong ones are refused in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from roofplan.calibrate.cli import calibrate
from roofplan.calibrate.tuned_tables import tuned_files, tuned_tables
from roofplan.scenarios.errors import BadFile

GEMM = "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n"
PER_TENSOR = "cu_num,M,N,K,q_dtype_w,kernelId,splitK,us,kernelName\n"
BF16 = "cu_num,M,N,K,bias,dtype,outdtype,us\n"
MOE = "cu_num,token,model_dim,inter_dim,expert,topk,dtype,q_dtype_a,q_dtype_w,q_type,us\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_products_and_experts_of_known_cards_and_formats(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a8w8_blockscale_tuned_gemm_x.csv",
        GEMM + "gfx942,304,64,4096,4096,ck,1,0,20.0,a,0,0,0\ngfx950,256,64,4096,4096,ck,1,0,15.0,a,0,0,0\n",
    )
    write(
        tmp_path,
        "a8w8_tuned_gemm.csv",
        PER_TENSOR + "304,64,4096,4096,torch.float8_e4m3fnuz,1,0,18.0,a\n304,64,4096,4096,torch.int8,1,0,17.0,a\n",
    )
    write(tmp_path, "x_bf16_tuned_gemm.csv", BF16 + "304,64,4096,4096,False,torch.bfloat16,torch.bfloat16,25.0\n")
    write(tmp_path, "a8w8_untuned_gemm.csv", "M,N,K\n1,2,3\n")
    write(
        tmp_path,
        "tuned_fmoe.csv",
        MOE
        + "304,256,4096,1536,128,8,torch.bfloat16,torch.float8_e4m3fnuz,torch.float8_e4m3fnuz,QuantType.per_1x128,900.0\n"
        + "304,256,4096,1536,128,8,torch.bfloat16,torch.bfloat16,torch.bfloat16,QuantType.No,1500.0\n"
        + "304,256,4096,1536,128,8,torch.bfloat16,torch.int8,torch.int8,QuantType.per_Token,950.0\n",
    )
    assert "a8w8_untuned_gemm.csv" not in [p.name for p in tuned_files(tmp_path)]
    tables = tuned_tables(tmp_path)
    gemm = tables["aic_gemm"].set_index("dtype")["latency_us"].to_dict()
    assert gemm == {"fp8_block": 20.0, "fp8": 18.0, "bfloat16": 25.0}
    assert tables["aic_moe"].set_index("dtype")["latency_us"].to_dict() == {"fp8_block": 900.0, "bfloat16": 1500.0}
    assert set(tables["aic_gemm"]["gpu"]) == {"mi300x"}
    done = CliRunner().invoke(calibrate, ["import", str(tmp_path), "--out", str(tmp_path / "t"), "--origin", "x"], catch_exceptions=False)
    assert "aic_gemm: 3 rows" in done.output
    assert (tmp_path / "t" / "aic_moe.parquet").exists()


def test_a_row_under_the_physical_floor_is_left_out_and_counted(tmp_path: Path) -> None:
    """8192 x 8192 x 8192 in 8 bits takes 421 us at an MI300X's peak."""
    rows = "".join(f"gfx942,304,8192,8192,8192,ck,1,0,{t},a,0,0,0\n" for t in (400.0, 430.0))
    write(tmp_path, "a8w8_blockscale_tuned_gemm.csv", GEMM + rows)
    said: list[str] = []
    assert list(tuned_tables(tmp_path, said.append)["aic_gemm"]["latency_us"]) == [430.0]
    assert any("1 rows left out" in line for line in said)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a8w8_tuned_gemm.csv", "cu_num,M,N,us\n304,1,2,3.0\n", "lacks the column K"),
        ("tuned_fmoe.csv", "cu_num,token,us\n304,1,3.0\n", "lacks the columns model_dim"),
        ("a8w8_blockscale_tuned_gemm.csv", GEMM + "gfx942,304,64,40", "row 1: K="),
        ("a8w8_blockscale_tuned_gemm.csv", GEMM + "gfx942,304,0,64,64,ck,1,0,3.0,a,0,0,0\n", "row 1: M='0"),
        ("a8w8_blockscale_tuned_gemm.csv", GEMM + "gfx942,304,8,64,64,ck,1,0,fast,a,0,0,0\n", "row 1: us='fast'"),
        ("a8w8_blockscale_tuned_gemm.csv", GEMM + "gfx950,256,8,64,64,ck,1,0,9.0,a,0,0,0\n", "known compute units: 304"),
        ("a8w8_blockscale_tuned_gemm.csv", "", "not a readable csv table"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    write(tmp_path, name, text)
    with pytest.raises(BadFile, match=words):
        tuned_tables(tmp_path)


def test_at_the_command_line_a_truncated_table_is_one_sentence_and_exit_2(tmp_path: Path) -> None:
    write(tmp_path, "a8w8_blockscale_tuned_gemm.csv", GEMM + "gfx942,304,64,40")
    program = [sys.executable, "-c", "from roofplan.cli import main; main()", "calibrate", "import", str(tmp_path)]
    done = subprocess.run([*program, "--out", str(tmp_path / "t")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "row 1: K=" in done.stderr
