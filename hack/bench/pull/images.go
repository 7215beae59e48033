package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"criserver/test/images/catalog"
	"criserver/test/images/image"
)

// shape is an image that is pulled.
type shape struct {
	name, about string
	layers      func() ([]*image.Layer, error)
}

// host is what the runtimes have the registry as a mirror of.
const host = "docker.io/"

func (s shape) reference() string { return host + "bench/" + s.name + ":latest" }

var images = []shape{
	{"files", "100 MB in 7,000 files in 10 layers, gzip", files},
	{"random4", "64 MB incompressible in 4 layers", func() ([]*image.Layer, error) { return random(4, 16) }},
	{"random1", "64 MB incompressible in 1 layer", func() ([]*image.Layer, error) { return random(1, 64) }},
}

func push(ctx context.Context, registry string) error {
	if registry == "" {
		return errors.New("push: -registry is needed")
	}
	for _, s := range images {
		layers, err := s.layers()
		if err != nil {
			return err
		}
		img, err := image.New(image.Spec{Layers: layers})
		if err != nil {
			return err
		}
		repository, tag := catalog.Split(s.reference())
		if err := img.Push(ctx, registry, repository, tag); err != nil {
			return err
		}
		size := 0
		for _, b := range img.Blobs {
			size += len(b.Data)
		}
		fmt.Printf("%s: %s; %.1f MB to download\n", s.name, s.about, float64(size)/1e6)
	}
	return nil
}

const (
	fileCount   = 7000
	layerCount  = 10
	imageBytes  = 100_000_000
	sizeSpread  = 1.8 // of the logarithm of files' sizes: most are small, few have most of the bytes
	filesPerDir = 25
)

// files makes layers as of a distribution with a program and its libraries: sizes are log-normal, half of the files
// are text, half look like machine code. gzip makes about 40 % of them.
func files() ([]*image.Layer, error) {
	rng := rand.New(rand.NewPCG(1, 2))
	sizes, sum := make([]float64, fileCount), 0.0
	for i := range sizes {
		sizes[i] = math.Exp(rng.NormFloat64() * sizeSpread)
		sum += sizes[i]
	}
	words := vocabulary(rng)
	var layers []*image.Layer
	for l := range layerCount {
		var in []image.File
		dir := ""
		for i := range fileCount / layerCount {
			if i%filesPerDir == 0 {
				dir = fmt.Sprintf("usr/lib/part%d/dir%d", l, i/filesPerDir)
				in = append(in, image.Dir(dir, 0o755))
			}
			size := int(sizes[l*fileCount/layerCount+i] / sum * imageBytes)
			body := text(rng, words, size)
			if i%2 == 0 {
				body = code(rng, words, size)
			}
			in = append(in, image.File{Path: fmt.Sprintf("%s/file%d", dir, i), Mode: 0o644, Body: body})
		}
		layer, err := image.NewLayer(image.Gzip, in...)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	return layers, nil
}

func vocabulary(rng *rand.Rand) [][]byte {
	words := make([][]byte, 4000)
	for i := range words {
		word := make([]byte, 2+rng.IntN(9))
		for j := range word {
			word[j] = "etaoinshrdlucmfwypvbgkjqxz_.(){}"[min(rng.IntN(32), rng.IntN(32))]
		}
		words[i] = word
	}
	return words
}

// text is words, some more frequent than others.
func text(rng *rand.Rand, words [][]byte, size int) []byte {
	out := make([]byte, 0, size+16)
	for len(out) < size {
		u := rng.Float64()
		out = append(out, words[int(u*u*u*float64(len(words)))]...)
		out = append(out, " \n"[min(1, rng.IntN(9)/8)])
	}
	return out[:size]
}

// code repeats instructions and has operands that nothing predicts.
func code(rng *rand.Rand, words [][]byte, size int) []byte {
	out := make([]byte, 0, size+16)
	for len(out) < size {
		u := rng.Float64()
		out = append(out, words[int(u*u*512)]...)
		operand := rng.Uint32()
		out = append(out, byte(operand), byte(operand>>8), 0, 0)
	}
	return out[:size]
}

// random makes layers that no compression makes smaller, of files of 1 MiB.
func random(layerCount, mib int) ([]*image.Layer, error) {
	rng := rand.NewChaCha8([32]byte{byte(layerCount)})
	var layers []*image.Layer
	for l := range layerCount {
		var in []image.File
		for i := range mib {
			body := make([]byte, 1<<20)
			_, _ = rng.Read(body) // never fails
			in = append(in, image.File{Path: fmt.Sprintf("data%d-%d", l, i), Mode: 0o644, Body: body})
		}
		layer, err := image.NewLayer(image.Gzip, in...)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	return layers, nil
}
