package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// memory is what a process has, in bytes.
type memory struct{ rss, peakRSS int64 }

func memoryOf(proc string) (memory, error) {
	values, err := fields(proc + "/status")
	return memory{rss: values["VmRSS:"] << 10, peakRSS: values["VmHWM:"] << 10}, err
}

// resetPeak makes VmHWM count anew (proc_pid_clear_refs(5)).
func resetPeak(proc string) error {
	return os.WriteFile(proc+"/clear_refs", []byte("5"), 0)
}

// spent is what a process and its dead children have used since they began.
type spent struct {
	cpu     time.Duration
	kernel  time.Duration // of cpu
	written int64         // bytes that must go to the disk
}

const ticks = 100 // a second: USER_HZ

func spentBy(proc string) (spent, error) {
	io, err := fields(proc + "/io")
	if err != nil {
		return spent{}, err
	}
	stat, err := os.ReadFile(proc + "/stat")
	if err != nil {
		return spent{}, err
	}
	// The program's name, in parentheses, may have anything in it. utime, stime, cutime, cstime are 14 to 17 (proc_pid_stat(5)).
	rest := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(rest) < 15 {
		return spent{}, fmt.Errorf("%s/stat: cannot be understood", proc)
	}
	var cpu, kernel int64
	for i, text := range rest[11:15] {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return spent{}, fmt.Errorf("%s/stat: %w", proc, err)
		}
		cpu += n
		if i%2 == 1 {
			kernel += n
		}
	}
	return spent{
		cpu: time.Duration(cpu) * time.Second / ticks, kernel: time.Duration(kernel) * time.Second / ticks, written: io["write_bytes:"],
	}, nil
}

// watchPSS takes samples until the returned function is called, which returns the highest in bytes.
func watchPSS(proc string) (stop func() int64) {
	end, peak := make(chan struct{}), make(chan int64)
	go func() {
		var most int64
		tick := time.NewTicker(25 * time.Millisecond)
		defer tick.Stop()
		for {
			// A process that is gone makes the pull fail.
			if values, err := fields(proc + "/smaps_rollup"); err == nil {
				most = max(most, values["Pss:"]<<10)
			}
			select {
			case <-tick.C:
			case <-end:
				peak <- most
				return
			}
		}
	}()
	return func() int64 { close(end); return <-peak }
}

// fields reads the lines of the form "name: number …" of a file.
func fields(path string) (map[string]int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for line := range strings.Lines(string(data)) {
		parts := strings.Fields(line)
		if len(parts) < 2 {
			continue
		}
		if n, err := strconv.ParseInt(parts[1], 10, 64); err == nil {
			out[parts[0]] = n
		}
	}
	return out, nil
}
