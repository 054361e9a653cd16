version 1.1

task predict {
  input {
    File sequences
    File? mates
    String sample
    String model = "lite"
    String extra = ""
    Int cpu = 4
    Int memory_gb = 4
    String container = "virnucpro/virnucpro:0.1.0"
  }

  command <<<
    set -euo pipefail
    virnucpro predict \
      ~{if defined(mates) then "-1 '" + sequences + "' -2 '" + select_first([mates]) + "'" else "'" + sequences + "'"} \
      --name '~{sample}' --output out --model '~{model}' --threads ~{cpu} --no-progress ~{extra}
    virnucpro --version
  >>>

  output {
    File sequence_table = "out/~{sample}.sequences.tsv"
    File region_table = "out/~{sample}.regions.tsv"
    File virus = "out/~{sample}.virus.fna.gz"
    File report = "out/~{sample}.report.html"
    String version = read_string(stdout())
  }

  runtime {
    container: container
    cpu: cpu
    memory: "~{memory_gb} GB"
  }

  meta {
    description: "Tell which sequences of a metagenome are viral"
  }

  parameter_meta {
    sequences: "FASTA, FASTQ, BAM, CRAM or SAM, plain or compressed"
    mates: "second file of a pair of reads"
    sample: "prefix of the result files"
  }
}

workflow virnucpro {
  input {
    Array[File] sequences
    Array[String] samples
  }

  scatter (item in zip(sequences, samples)) {
    call predict { input: sequences = item.left, sample = item.right }
  }

  output {
    Array[File] sequence_tables = predict.sequence_table
    Array[File] virus = predict.virus
  }
}
