// Asks a server three times: for an answer, for a stream, and for what it must refuse.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	vdiff "example.com/vdiff/v1"
)

func main() {
	// Since grpc-go 1.63 it is grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials())).
	connection, err := grpc.Dial(os.Args[1], grpc.WithInsecure())
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	client := vdiff.NewGenerationServiceClient(connection)

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if key := os.Getenv("VDIFF_API_KEY"); key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
	}

	reply, err := client.Generate(ctx, &vdiff.GenerateRequest{Spec: spec(24)})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(reply.Outputs[0].Text)

	stream, err := client.StreamGenerate(ctx, &vdiff.StreamGenerateRequest{Spec: spec(24)})
	if err != nil {
		log.Fatal(err)
	}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(event.GetCommitted().GetText()) // "" in other events
	}
	fmt.Println()

	_, err = client.Generate(ctx, &vdiff.GenerateRequest{Spec: spec(1000000)})
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			fmt.Println(status.Code(err), detail.Reason)
		case *errdetails.BadRequest:
			fmt.Println(detail.FieldViolations[0].Field)
		}
	}
}

// Fields with a default are pointers: nil is "not said", 0 is 0.
func spec(maxNewTokens uint32) *vdiff.GenerationSpec {
	seed, threshold := uint64(7), 0.95
	return &vdiff.GenerationSpec{
		Input:    &vdiff.GenerationSpec_Text{Text: "Once upon a time"},
		Sampling: &vdiff.SamplingParams{MaxNewTokens: &maxNewTokens, Seed: &seed},
		Diffusion: &vdiff.DiffusionParams{
			Strategy: &vdiff.DiffusionParams_ConfidenceThreshold{
				ConfidenceThreshold: &vdiff.ConfidenceThreshold{Threshold: &threshold},
			},
		},
	}
}
